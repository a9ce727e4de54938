"""Relaxations of rounding for latents that are optimised one picture at a time: annealed stochastic choices.

A value is somewhere between the integers below and above it, and chooses between the two at random. The choice is a
Gumbel-softmax sample, which the temperature T makes harder and harder:

    u = v - floor(v),  value = floor(v) + sigmoid((advantage(u) / T + logistic noise) / T)

`advantage` is the log-odds of the upper integer at T = 1, and is what the kinds differ in:

    "atanh"    atanh(u) - atanh(1 - u)               stochastic Gumbel annealing (Yang et al., NeurIPS 2020)
    "linear"   log(u / (1 - u))                      as likely as near
    "sigmoid"  from the scaled logit of u            SGA+, two classes (Perugachi-Diaz et al., NeurIPS 2024)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlic_jax.model.quantisers import Quantiser

EDGE = 1e-4           # u stays so far from 0 and 1, where the log-odds have no bound
SIGMOID_SCALE = 2.3   # of the logit: the value with which SGA+ is reported


def _atanh(u: jax.Array) -> jax.Array:
  return jnp.arctanh(u) - jnp.arctanh(1 - u)


def _linear(u: jax.Array) -> jax.Array:
  return jnp.log(u) - jnp.log1p(-u)


def _sigmoid(u: jax.Array) -> jax.Array:
  return jax.nn.log_sigmoid(SIGMOID_SCALE * _linear(u)) - jax.nn.log_sigmoid(-SIGMOID_SCALE * _linear(u))


ADVANTAGES: dict[str, Callable[[jax.Array], jax.Array]] = {"atanh": _atanh, "linear": _linear, "sigmoid": _sigmoid}


def annealed(kind: str, temperature: jax.Array | float) -> Quantiser:
  """The quantiser of a kind at a temperature above 0, which may be traced. Decoder and rate both get the sample.

  ValueError for a kind that there is not."""
  if kind not in ADVANTAGES:
    raise ValueError(f"relaxation={kind!r}; wanted one of {', '.join(ADVANTAGES)}")

  def quantise(residual: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    below = jnp.floor(jax.lax.stop_gradient(residual))
    advantage = ADVANTAGES[kind](jnp.clip(residual - below, EDGE, 1 - EDGE))
    value = below + jax.nn.sigmoid((advantage / temperature + noise) / temperature)
    return value, value

  return Quantiser(quantise, jax.random.logistic)
