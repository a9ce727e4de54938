"""Options of the compiler for TPUs that depend on the program, if the compiler knows them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

# With fewer images per chip XLA splits the rows of each image into blocks (space-to-batch) around every convolution.
# Rows of 16 become 3 wide, and padding and copies cost more than the convolutions gain.
ENOUGH_IMAGES = 8
# Both options together turn space-to-batch off; one alone has no effect.
NO_SPACE_TO_BATCH = (("xla_tpu_run_space_to_batch", False), ("xla_tpu_run_space_to_batch_on_new_platforms", False))


def options_for(images: int, device: jax.Device) -> dict[str, Any]:
  """Return compiler options of jax.jit for a program of convolutions with `images` per device.

  Empty for other platforms, for ENOUGH_IMAGES or more, and if the compiler does not know the options."""
  if device.platform != "tpu" or images >= ENOUGH_IMAGES or not accepts(device, NO_SPACE_TO_BATCH):
    return {}
  return dict(NO_SPACE_TO_BATCH)


@functools.cache
def accepts(device: jax.Device, options: tuple[tuple[str, Any], ...]) -> bool:
  """Return whether the compiler of a device knows all `options`, by compiling a trivial program."""
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
  try:
    jax.jit(lambda x: x + 1).lower(scalar).compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError:  # "No such compile option"
    return False
  return True
