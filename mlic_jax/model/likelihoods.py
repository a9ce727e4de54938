"""How many bits z and y cost: a learned factorized density for z, a conditional Gaussian for y."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.model.scale_table import SCALE_MIN, SCALE_STEP, scale_table
from mlic_jax.model.straight_through import lower_bound

LIKELIHOOD_MIN = 1e-9  # 29.9 bits; what lies beyond is coded by escape and costs about as much
TAIL_MASS = 1e-9       # probability outside the two outer quantiles of z


def scale_index(scale: jax.Array) -> jax.Array:
  """int32 row of the coding table: the smallest level that is not below the scale."""
  table = jnp.asarray(scale_table()[:-1])
  return jnp.searchsorted(table, scale, side="left", method="compare_all").astype(jnp.int32)


def scale_place(scale: jax.Array) -> jax.Array:
  """float32 place among the levels: r at level r, between them by the logarithm.

  Its ceiling is `scale_index`, but for rounding at the levels themselves; coding/portable_cdf.py makes rows of it that
  other machines agree with.
  """
  return jnp.log(scale / SCALE_MIN) / SCALE_STEP


def bits(likelihood: jax.Array) -> jax.Array:
  """Bits per element, base 2."""
  return -jnp.log2(lower_bound(likelihood, LIKELIHOOD_MIN))


def gaussian_bits(v: jax.Array, mean: jax.Array | float, scale: jax.Array) -> jax.Array:
  """Bits of v under N(mean, scale) convolved with the unit uniform, per element; broadcasts. scale >= SCALE_MIN."""
  v = jnp.abs(v - mean)  # both terms in the left tail, where the difference keeps its digits
  cdf = lambda t: 0.5 * jax.lax.erfc(-(2**-0.5) * t)
  return bits(cdf((0.5 - v) / scale) - cdf((-0.5 - v) / scale))


class FactorizedPrior(nn.Module):
  """The density of z: one monotonic network per channel (Balle et al., ICLR 2018, appendix).

  `quantiles` (N, 3) are the lower tail, the median and the upper tail of each channel. They follow the density through
  `aux_loss`, not through the rate.
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
    """Logits of the cumulative distribution at v (..., N) -> (..., N)."""
    x = v[..., None]
    for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases)):
      # As a broadcast sum: for matrices of three by three a batched dot is slower on every platform.
      x = (x[..., None, :] * jax.nn.softplus(matrix)).sum(-1) + bias
      if i < len(self.factors):
        x = x + jnp.tanh(self.factors[i]) * jnp.tanh(x)
    return x[..., 0]

  def likelihood(self, v: jax.Array) -> jax.Array:
    """Probability of the unit bin around v (..., N), per element."""
    lower, upper = self.cumulative_logits(v - 0.5), self.cumulative_logits(v + 0.5)
    # The same difference on the side where the sigmoids are small. jnp.sign would be 0 where the density is symmetric
    # around v, and so would the difference.
    sign = jnp.where(jax.lax.stop_gradient(lower + upper) > 0, -1.0, 1.0)
    return jnp.abs(jax.nn.sigmoid(sign * upper) - jax.nn.sigmoid(sign * lower))

  def bits(self, v: jax.Array) -> jax.Array:
    """Bits of the unit bin around v (..., N), per element."""
    return bits(self.likelihood(v))

  @property
  def medians(self) -> jax.Array:
    """(N,), around which z is rounded."""
    return self.quantiles[:, 1]

  def aux_loss(self) -> jax.Array:
    """Distance of the quantiles from where they belong; its only gradient is that of `quantiles`."""
    density = self.clone(parent=None)
    frozen = jax.lax.stop_gradient(dict(self.variables["params"]))
    logits: Any = density.apply({"params": frozen}, self.quantiles.T, method="cumulative_logits")
    target = jnp.log(2 / TAIL_MASS - 1)
    return jnp.abs(logits - jnp.array([-target, 0.0, target])[:, None]).sum()
