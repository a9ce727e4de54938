"""Gradients of single parts of a training step, each as a program for one device.

A part compiles in a fraction of the time of a step, and its program shows the effect of a change to that part. The
inputs from other parts, and the gradients of its outputs, are arguments.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mlic_jax.config import CodecConfig
from mlic_jax.distortions.mse import mean_squared_error
from mlic_jax.kernels.convolution import matmul_precision
from mlic_jax.model import transforms
from mlic_jax.model.mlic import MLIC, build, for_gradients
from mlic_jax.model.param_shapes import param_shapes
from mlic_jax.model.quantizers import NOISE
from mlic_jax.runtime import tpu_options
from mlic_jax.training.losses import as_cells
from mlic_jax.training.pmap_programs import build_options

PARTS = ("scan", "g_a", "g_s")


def part_program(part: str, config, codec: CodecConfig, images: int, device: jax.Device) -> tuple[Any, tuple]:
  """Returns the jitted gradient of a part, and the shapes of its arguments on `device`.

  Args:
    part: "scan" (h_s and the scan over the slices), "g_a", or "g_s" (with the distortion).
    config: a training config; crop_size is the size of the images.
    codec: the CodecConfig of `config`.
    images: the number of images per device.
    device: the target of the program; its platform decides how the slices are scanned.
  """
  model = for_gradients(build(codec, **build_options(config)), device.platform)
  array = lambda *shape: jax.ShapeDtypeStruct((images, *shape), jnp.float32)
  x = array(config.crop_size, config.crop_size, 3)
  quality = 1.0 if codec.num_rates else None
  params = param_shapes(codec)
  y, z = jax.eval_shape(lambda params, x: model.apply({"params": params}, x, quality, method="analyze"), params, x)
  cell = transforms.cell(codec) if device.platform == "tpu" else 1  # as in a training step
  programs: dict[str, tuple[Callable, tuple[str, ...], tuple]] = {
      "scan": (scan_gradient, ("h_s", "slices"), (y, z, y, y)), "g_a": (_analysis, ("g_a",), (x, y)),
      "g_s": (partial(_synthesis, cell=cell), ("g_s",), (y, x))}
  function, modules, arguments = programs[part]
  sharding = jax.sharding.SingleDeviceSharding(device)
  on_device = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  gains = {name for name, value in params.items() if isinstance(value, jax.ShapeDtypeStruct)}  # not in a submodule
  part_params = {name: value for name, value in params.items() if name in gains.union(modules)}
  options = tpu_options.options_for(images, device) or None
  return jax.jit(function(model), compiler_options=options), jax.tree.map(on_device, (part_params, *arguments))


def scan_gradient(model: MLIC) -> Callable:
  """Returns the gradient of h_s and the scan over the slices, a function (params, y, z, noise, gradient of y_hat)."""
  def scan(module: MLIC, z, y, noise):
    with matmul_precision(module.entropy_precision):
      return module.slices.scan(module.h_s(z), y, NOISE, noise, None, module.remat)

  def loss(params, y, z, noise, y_hat_gradient):
    coded: Any = model.apply({"params": params}, z, y, noise, method=scan)
    return jnp.sum(coded.bits) + jnp.vdot(coded.y_hat, y_hat_gradient)
  return jax.grad(loss, (0, 1, 2))


def _analysis(model: MLIC) -> Callable:
  def loss(params, x, y_gradient):
    y: Any = model.apply({"params": params}, x, method=lambda module, x: _in_dtype(module, module.g_a, x))
    return jnp.vdot(y, y_gradient)
  return jax.grad(loss)


def _synthesis(model: MLIC, cell: int) -> Callable:
  def loss(params, y_hat, x):
    x_hat: Any = model.apply({"params": params}, y_hat, method=lambda module, y: _in_dtype(module, module.g_s, y))
    return jnp.mean(mean_squared_error(as_cells(x_hat, cell), as_cells(x, cell)))
  return jax.grad(loss, (0, 1))


def _in_dtype(module: MLIC, transform: Callable, x: jax.Array) -> jax.Array:
  return transform(x.astype(module.transform_dtype)).astype(jnp.float32)
