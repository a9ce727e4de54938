"""The functions that a codec compiles for an image size, with the shapes of their arguments."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from mlic_jax.coding import jit_functions, latent_optimization
from mlic_jax.coding.latent_optimizer import rate_distortion_gradient
from mlic_jax.config import CodecConfig
from mlic_jax.distortions import mse
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.model.param_shapes import param_shapes

ENCODER = ("analyze", "start", "nonanchors", "advance")
DECODER = ("start", "nonanchors", "advance", "finish")
LATENT_OPTIMIZER = ("refine",)


def codec_programs(config: CodecConfig, height: int, width: int) -> dict[str, tuple[Callable, tuple]]:
  """Returns {name: (function, shapes of its arguments)} for an image, padded as by `Codec`.

  The functions are the large ones of jit_functions.py, with the module bound, and "refine", a step of latent
  optimization for MSE. The other functions that are compiled for an image are small."""
  module, multiple = build(config), side_multiple(config)
  image = jax.ShapeDtypeStruct((1, *(-(-side // multiple) * multiple for side in (height, width)), 3), np.uint8)
  quality = jax.ShapeDtypeStruct((), np.float32) if config.num_rates else None
  variables = {"params": param_shapes(config)}
  k = jax.ShapeDtypeStruct((), np.int32)
  programs: dict[str, tuple[Callable, tuple]] = {}

  def result(name, *arguments):
    function = partial(getattr(jit_functions, name), module)
    programs[name] = function, (variables, *arguments)
    return jax.eval_shape(function, variables, *arguments)

  y, z = result("analyze", image, quality)
  z_symbols, _ = jax.eval_shape(partial(jit_functions.round_z, module), variables, y, z)
  hyper, _, prior, state = result("start", z_symbols)
  symbols = jax.eval_shape(lambda *arrays: jit_functions.symbols(*arrays, True), y, k, prior.mean)
  result("nonanchors", k, hyper, state, symbols)
  result("advance", k, hyper, state, symbols)
  result("finish", k, hyper, state, symbols, quality)

  scalar, inside = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((), (*image.shape[:3], 1)))
  gradient = jax.tree_util.Partial(rate_distortion_gradient(module, mse), variables, image, inside, quality, scalar)
  programs["refine"] = partial(latent_optimization.step, relaxation=latent_optimization.Schedule.relaxation), (
      (y, z), jax.eval_shape(latent_optimization.first_moments, (y, z)), gradient,
      jax.eval_shape(lambda: jax.random.key(0)),
      scalar, scalar)
  return programs
