"""Likelihoods of the latents: a learned factorized density for z, a conditional Gaussian for y."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.model.scale_table import SCALE_MIN, SCALE_STEP, scale_table
from mlic_jax.model.straight_through import lower_bound

LIKELIHOOD_MIN = 1e-9  # 29.9 bits, about the cost of an escape code
TAIL_MASS = 1e-9       # probability outside the two outer quantiles of z


def scale_index(scale: jax.Array) -> jax.Array:
  """Return the int32 CDF row of a scale: the smallest level that is not below the scale."""
  table = jnp.asarray(scale_table()[:-1])
  return jnp.searchsorted(table, scale, side="left", method="compare_all").astype(jnp.int32)


def scale_level(scale: jax.Array) -> jax.Array:
  """Return the float32 coordinate of a scale on the levels: r at level r, linear in the logarithm of the scale.

  Its ceiling is `scale_index`, except for rounding at the levels. coding/portable_cdf.py picks rows from it that agree
  on all machines.
  """
  return jnp.log(scale / SCALE_MIN) / SCALE_STEP


def bits(likelihood: jax.Array) -> jax.Array:
  """Return bits per element, with likelihoods below LIKELIHOOD_MIN raised to it."""
  return -jnp.log2(lower_bound(likelihood, LIKELIHOOD_MIN))


def gaussian_bits(v: jax.Array, mean: jax.Array | float, scale: jax.Array) -> jax.Array:
  """Return bits per element of v under N(mean, scale^2) convolved with the unit uniform. The arguments broadcast.

  scale is at least SCALE_MIN."""
  v = jnp.abs(v - mean)  # both terms are in the left tail, where their difference is exact
  cdf = lambda t: 0.5 * jax.lax.erfc(-(2**-0.5) * t)
  return bits(cdf((0.5 - v) / scale) - cdf((-0.5 - v) / scale))


class FactorizedPrior(nn.Module):
  """Factorized density of z, one monotonic network per channel (Balle et al., ICLR 2018, appendix 6.1).

  `quantiles` (N, 3) are the lower tail, the median and the upper tail of each channel. Only `aux_loss` trains them.
  """
  channels: int
  widths: tuple[int, ...] = (3, 3, 3, 3)
  init_scale: float = 10.0

  def setup(self):
    sizes = (1, *self.widths, 1)
    scale = self.init_scale**(1 / (len(self.widths) + 1))
    matrices, biases, factors = [], [], []
    for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
      start = np.log(np.expm1(1 / scale / fan_out))
      matrices.append(self.param(f"matrix{i}", nn.initializers.constant(start), (self.channels, fan_out, fan_in)))
      biases.append(self.param(f"bias{i}", lambda key, shape: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5),
                               (self.channels, fan_out)))
      if i < len(self.widths):
        factors.append(self.param(f"factor{i}", nn.initializers.zeros, (self.channels, fan_out)))
    self.matrices, self.biases, self.factors = matrices, biases, factors
    tails = jnp.array([-self.init_scale, 0.0, self.init_scale])
    self.quantiles = self.param("quantiles", lambda _: jnp.tile(tails, (self.channels, 1)))

  def cumulative_logits(self, v: jax.Array) -> jax.Array:
    """Return logits of the cumulative distribution at v, (..., N) -> (..., N)."""
    x = v[..., None]
    for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases)):
      # A broadcast sum, because a batched dot of 3x3 matrices is slower on every platform.
      x = (x[..., None, :] * jax.nn.softplus(matrix)).sum(-1) + bias
      if i < len(self.factors):
        x = x + jnp.tanh(self.factors[i]) * jnp.tanh(x)
    return x[..., 0]

  def likelihood(self, v: jax.Array) -> jax.Array:
    """Return the probability of the unit bin around each element of v (..., N)."""
    lower, upper = self.cumulative_logits(v - 0.5), self.cumulative_logits(v + 0.5)
    # The difference is taken on the side where the sigmoids are small. Both sides are complete, because XLA may compute
    # the condition more than once, and not alike, where the density is symmetric around v and the sum is about 0.
    left, right = (jnp.abs(jax.nn.sigmoid(sign * upper) - jax.nn.sigmoid(sign * lower)) for sign in (1, -1))
    return jnp.where(jax.lax.stop_gradient(lower + upper) > 0, right, left)

  def bits(self, v: jax.Array) -> jax.Array:
    """Return the bits of the unit bin around each element of v (..., N)."""
    return bits(self.likelihood(v))

  @property
  def medians(self) -> jax.Array:
    """Medians (N,) of the channels; z is rounded relative to them."""
    return self.quantiles[:, 1]

  def aux_loss(self) -> jax.Array:
    """Return the distance of the quantiles from the tails and the median. It has a gradient for `quantiles` only."""
    density = self.clone(parent=None)
    frozen = jax.lax.stop_gradient(dict(self.variables["params"]))
    logits: Any = density.apply({"params": frozen}, self.quantiles.T, method="cumulative_logits")
    target = jnp.log(2 / TAIL_MASS - 1)
    return jnp.abs(logits - jnp.array([-target, 0.0, target])[:, None]).sum()
