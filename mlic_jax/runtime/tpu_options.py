"""Options of the compiler for TPUs, chosen by what a program computes, and only where the compiler knows them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

# With fewer images than this on a chip, XLA parts the rows of each image into blocks that it treats as images, around
# every convolution: rows of 16 become 3 wide, and padding and copying costs more than the convolutions gain.
ENOUGH_IMAGES = 8
# They stop this together; one alone changes nothing.
NO_SPACE_TO_BATCH = (("xla_tpu_run_space_to_batch", False), ("xla_tpu_run_space_to_batch_on_new_platforms", False))


def options_for(images: int, device: jax.Device) -> dict[str, Any]:
  """Compiler options for a program of convolutions with so many images on each device, as jax.jit takes them.

  Empty for other platforms, for ENOUGH_IMAGES and more, and where the compiler of the device does not know them all."""
  if device.platform != "tpu" or images >= ENOUGH_IMAGES or not accepts(device, NO_SPACE_TO_BATCH):
    return {}
  return dict(NO_SPACE_TO_BATCH)


@functools.cache
def accepts(device: jax.Device, options: tuple[tuple[str, Any], ...]) -> bool:
  """Whether the compiler of a device takes all of `options`. Compiles a trivial program."""
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
  try:
    jax.jit(lambda x: x + 1).lower(scalar).compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError:  # "No such compile option"
    return False
  return True
