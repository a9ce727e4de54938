"""Logistic distribution, with the cumulative distribution sigmoid(x / s) and s = UNIT * scale."""

import math

import jax
import jax.numpy as jnp

from mlic_jax.model import distributions
from mlic_jax.model.distributions import OUTSIDE_MIN, nats_to_bits
from mlic_jax.model.scale_table import SCALE_MIN

UNIT = 0.5 / math.log(2 / OUTSIDE_MIN - 1) / SCALE_MIN   # 0.355


class Distribution(distributions.Distribution):
  """Logistic distribution of y - mean."""

  def bits(self, residual, scale):
    s, v = UNIT * scale, jnp.abs(residual)
    # sigmoid(p) - sigmoid(q) = sigmoid(p) sigmoid(-q) (1 - exp(q - p)), whose terms neither cancel nor underflow.
    nats = jax.nn.softplus(-(v + 0.5) / s) + jax.nn.softplus((v - 0.5) / s) - jnp.log(-jnp.expm1(-1 / s))
    return nats_to_bits(nats)

  def cdf(self, x, scale, shape=0):
    import scipy.special  # slow to import, and coding does not need it
    return scipy.special.expit(x / (UNIT * scale))
