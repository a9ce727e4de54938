"""Laplace distribution, density exp(-|x| / b) / (2 b) with b = UNIT * scale: heavier tails than the Gaussian."""

import math

import jax.numpy as jnp
import numpy as np

from mlic_jax.model import distributions
from mlic_jax.model.distributions import OUTSIDE_MIN, nats_to_bits
from mlic_jax.model.scale_table import SCALE_MIN

UNIT = 0.5 / -math.log(OUTSIDE_MIN) / SCALE_MIN   # 0.375


class Distribution(distributions.Distribution):
  """Laplace distribution of y - mean."""

  def bits(self, residual, scale):
    b, v = UNIT * scale, jnp.abs(residual)
    beyond, within = jnp.maximum(v - 0.5, 0), jnp.minimum(v, 0.5)
    tail = beyond / b - jnp.log(-0.5 * jnp.expm1(-1 / b))           # a bin on one side of the peak, in closed form
    peak = -jnp.log(-0.5 * (jnp.expm1((within - 0.5) / b) + jnp.expm1((-within - 0.5) / b)))
    return nats_to_bits(jnp.where(v < 0.5, peak, tail))

  def cdf(self, x, scale, shape=0):
    tail = 0.5 * np.exp(-np.abs(x) / (UNIT * scale))
    return np.where(x < 0, tail, 1 - tail)
