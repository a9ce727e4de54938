"""The entropy model without the transforms, as pure functions of its parameters; docs/research.md uses them.

    params = init(config, key)                     new ones, or those of a codec: variables["params"]["slices"]
    coded = predict(config, params, hyper, y)      y_hat, bits, mean, scale: (B, h, w, M) each
    y, hyper = latents(config, variables, x)       what a codec makes of pictures, to try entropy models on

`config` has to be static under jax.jit; everything else may be traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import PRECISION, build
from mlic_jax.model.quantizers import NOISE, ROUNDING, Quantizer
from mlic_jax.model.slices import Coded, Slices


def init(config: CodecConfig, key: jax.Array) -> dict[str, Any]:
  """Parameters of all slices; their leading axis is the slice."""
  y = jax.ShapeDtypeStruct((1, 4, 4, config.M), jnp.float32)
  hyper = jax.ShapeDtypeStruct((1, 4, 4, 2 * config.M), jnp.float32)
  return Slices(config).lazy_init(key, hyper, y, method=Slices.walk)["params"]


def predict(config: CodecConfig, params: dict[str, Any], hyper: jax.Array, y: jax.Array,
            key: jax.Array | None = None, quantizer: Quantizer | None = None) -> Coded:
  """What the entropy model makes of y (B, h, w, M), given hyper (B, h, w, 2M).

  h and w are multiples of 4. Without a key, the bits are those of the file, whose gradient is not that of the rate
  (rounding has none); with one, those of training, with noise in place of rounding. Another `quantizer` takes its
  random numbers from the key.
  """
  quantizer = quantizer or (ROUNDING if key is None else NOISE)
  draws = quantizer.draws(key, y.shape)
  with jax.default_matmul_precision(PRECISION):
    coded: Any = Slices(config).apply({"params": params}, hyper, y, quantizer, draws, method="walk")
    return coded


def latents(config: CodecConfig, variables: dict[str, Any], x: jax.Array,
            quality: jax.Array | float | None = None) -> tuple[jax.Array, jax.Array]:
  """y (B, h, w, M) and hyper (B, h, w, 2M) of pictures x (B, H, W, 3) in [0, 1], by the codec of `variables`."""
  run: Callable[..., Any] = lambda *args, method: build(config).apply(variables, *args, method=method)
  y, z = run(x, quality, method="analyze")
  return y, run(run(z, method="round_z"), method="hyper")
