"""The shapes of all parameters of a codec, from a trace that is shorter than that of `init`."""

import functools
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.lazy_params import without_initializers
from mlic_jax.model.mlic import MLIC, build, side_multiple
from mlic_jax.model.slices import SliceStep


def param_shapes(config: CodecConfig) -> dict[str, Any]:
  """Return the tree of the parameters that `init` creates, with jax.ShapeDtypeStruct as leaves.

  The parameters of the slice steps are stacked, as in the model. A config is traced once in a process."""
  return jax.tree.map(lambda shape: shape, _traced(config))  # a copy, which the caller may change


def step_param_shapes(config: CodecConfig) -> dict[str, Any]:
  """Return the tree of the parameters of one slice step, with jax.ShapeDtypeStruct as leaves."""
  M, cs = config.M, config.slice_channels
  hyper, decoded, y = (jax.ShapeDtypeStruct((1, 4, 4, channels), np.float32) for channels in (2 * M, M, cs))
  k = jax.ShapeDtypeStruct((), np.int32)   # traced, as in the model: the parameters of all slices have the same shapes
  with without_initializers():
    params: dict[str, Any] = jax.eval_shape(SliceStep(config).init, jax.random.key(0), k, hyper, decoded, y)["params"]
  return params


def apply_without_slices(codec: MLIC, x: jax.Array, quality: jax.Array | float | None) -> jax.Array:
  """Run all of a codec but the slice steps."""
  y, z = codec.analyze(x, quality)
  codec.hyper(codec.round_z(z))
  return codec.synthesize(y, quality)


def init_without_scan(model: nn.Module, key: jax.Array, x: jax.Array, quality: float | None) -> dict[str, Any]:
  """Return model.init(key, x, quality). For the codec it traces no scan over slices, which creates no parameters."""
  def create(codec: MLIC, x: jax.Array, quality: float | None) -> None:
    apply_without_slices(codec, x, quality)
    codec.slices.step  # noqa: B018  its parameters are created when it is set up

  variables: Any = model.init(key, x, quality, method=create if isinstance(model, MLIC) else None)
  return dict(variables)


@functools.cache  # tracing takes half a second
def _traced(config: CodecConfig) -> dict[str, Any]:
  """Return what param_shapes copies. A trace of `init`, with its scan, takes three times as long."""
  x = jax.ShapeDtypeStruct((1, *(side_multiple(config),) * 2, 3), np.float32)
  quality = 1.0 if config.num_rates else None
  init = lambda x: build(config).init(jax.random.key(0), x, quality, method=apply_without_slices)
  with without_initializers():
    params: dict[str, Any] = jax.eval_shape(init, x)["params"]
  stacked = lambda shape: jax.ShapeDtypeStruct((config.num_slices, *shape.shape), shape.dtype)
  return {**params, "slices": {"steps": jax.tree.map(stacked, step_param_shapes(config))}}
