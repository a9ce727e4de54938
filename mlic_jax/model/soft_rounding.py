"""Relaxations of rounding for latents that are optimized one picture at a time: annealed stochastic choices.

A value is somewhere between the integers below and above it, and chooses between the two at random. The choice is a
Gumbel-softmax sample, which the temperature T makes harder and harder:

    u = v - floor(v),  value = floor(v) + sigmoid((advantage(u) / T + logistic noise) / T)

`advantage` is the log-odds of the upper integer at T = 1, and is what the kinds differ in:

    "atanh"    atanh(u) - atanh(1 - u)      stochastic Gumbel annealing (Yang, Bamler and Mandt, NeurIPS 2020)
    "linear"   logit(u)                     as likely as near
    "sigmoid"  SIGMOID_SCALE * logit(u)     SGA+ of two classes, whose odds are those of the sigmoid of the scaled logit
                                            (Perugachi-Diaz et al., NeurIPS 2024)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlic_jax.model.quantizers import Quantizer

EDGE = 1e-4           # u stays so far from 0 and 1, where the log-odds have no bound
SIGMOID_SCALE = 2.3   # of the logit: the value with which SGA+ is reported


def _atanh(u: jax.Array) -> jax.Array:
  return jnp.arctanh(u) - jnp.arctanh(1 - u)


def _logit(u: jax.Array) -> jax.Array:
  return jnp.log(u) - jnp.log1p(-u)


ADVANTAGES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "atanh": _atanh, "linear": _logit, "sigmoid": lambda u: SIGMOID_SCALE * _logit(u)}


def annealed(kind: str, temperature: jax.Array | float) -> Quantizer:
  """The quantizer of a kind at a temperature above 0, which may be traced. Decoder and rate both get the sample.

  ValueError for a kind that there is not."""
  if kind not in ADVANTAGES:
    raise ValueError(f"relaxation={kind!r}; wanted one of {', '.join(ADVANTAGES)}")

  def quantize(residual: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    below = jnp.floor(jax.lax.stop_gradient(residual))
    advantage = ADVANTAGES[kind](jnp.clip(residual - below, EDGE, 1 - EDGE))
    value = below + jax.nn.sigmoid((advantage / temperature + noise) / temperature)
    return value, value

  return Quantizer(quantize, jax.random.logistic)
