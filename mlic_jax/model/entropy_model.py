"""The entropy model without the transforms, as pure functions of its parameters; docs/research.md uses them.

    params = init(config, key)                     those of a codec are variables["params"]["slices"]
    coded = predict(config, params, hyper, y)      y_hat, bits, mean, scale: (B, h, w, M) each
    y, hyper = latents(config, variables, x)       latents of images, as inputs of entropy models

`config` is static under jax.jit; all other arguments may be traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import PRECISION, build
from mlic_jax.model.quantizers import NOISE, ROUNDING, Quantizer
from mlic_jax.model.slices import Slices, SlicesOutput


def init(config: CodecConfig, key: jax.Array) -> dict[str, Any]:
  """Return initial parameters of all slices. Their leading axis is the slice."""
  y = jax.ShapeDtypeStruct((1, 4, 4, config.M), jnp.float32)
  hyper = jax.ShapeDtypeStruct((1, 4, 4, 2 * config.M), jnp.float32)
  return Slices(config).lazy_init(key, hyper, y, method=Slices.scan)["params"]


def predict(config: CodecConfig, params: dict[str, Any], hyper: jax.Array, y: jax.Array,
            key: jax.Array | None = None, quantizer: Quantizer | None = None) -> SlicesOutput:
  """Return y_hat, bits and prior of y (B, h, w, M), given hyper features (B, h, w, 2M). h and w are multiples of 4.

  Without a key the bits are those of a file, and they have no gradient through rounding. With a key they are those of
  training, with noise for rounding. Another `quantizer` draws its random numbers from the key.
  """
  quantizer = quantizer or (ROUNDING if key is None else NOISE)
  draws = quantizer.draws(key, y.shape)
  with jax.default_matmul_precision(PRECISION):
    coded: Any = Slices(config).apply({"params": params}, hyper, y, quantizer, draws, method="scan")
    return coded


def latents(config: CodecConfig, variables: dict[str, Any], x: jax.Array,
            quality: jax.Array | float | None = None) -> tuple[jax.Array, jax.Array]:
  """Return y (B, h, w, M) and hyper features (B, h, w, 2M) of images x (B, H, W, 3) in [0, 1]."""
  run: Callable[..., Any] = lambda *args, method: build(config).apply(variables, *args, method=method)
  y, z = run(x, quality, method="analyze")
  return y, run(run(z, method="round_z"), method="hyper")
