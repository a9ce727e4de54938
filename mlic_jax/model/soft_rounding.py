"""Relaxations of rounding for the optimization of the latents of one image: stochastic Gumbel annealing.

A value v chooses at random between the integers below and above it. The choice is a Gumbel-softmax sample, which
becomes hard as the temperature T falls:

    u = v - floor(v),  value = floor(v) + sigmoid((log_odds(u) / T + logistic noise) / T)

The kinds differ in `log_odds`, the log-odds of the upper integer at T = 1:

    "atanh"    atanh(u) - atanh(1 - u)      SGA (Yang, Bamler and Mandt, NeurIPS 2020)
    "linear"   logit(u)                     the probability of the upper integer is u
    "sigmoid"  SIGMOID_SCALE * logit(u)     SGA+ of two classes, with the odds of the sigmoid of the scaled logit
                                            (Perugachi-Diaz et al., NeurIPS 2024)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlic_jax.model.quantizers import Quantizer

EDGE = 1e-4           # margin of u at 0 and 1, where the log-odds diverge
SIGMOID_SCALE = 2.3   # factor of the logit, as in the results of SGA+


def _atanh(u: jax.Array) -> jax.Array:
  return jnp.arctanh(u) - jnp.arctanh(1 - u)


def _logit(u: jax.Array) -> jax.Array:
  return jnp.log(u) - jnp.log1p(-u)


LOG_ODDS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "atanh": _atanh, "linear": _logit, "sigmoid": lambda u: SIGMOID_SCALE * _logit(u)}


def annealed(kind: str, temperature: jax.Array | float) -> Quantizer:
  """Return the quantizer of a kind at a temperature above 0, which may be traced. Decoder and rate get the same sample.

  ValueError for an unknown kind."""
  if kind not in LOG_ODDS:
    raise ValueError(f"got relaxation={kind!r}; wanted one of {', '.join(LOG_ODDS)}")

  def quantize(residual: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    below = jnp.floor(jax.lax.stop_gradient(residual))
    log_odds = LOG_ODDS[kind](jnp.clip(residual - below, EDGE, 1 - EDGE))
    value = below + jax.nn.sigmoid((log_odds / temperature + noise) / temperature)
    return value, value

  return Quantizer(quantize, jax.random.logistic)
