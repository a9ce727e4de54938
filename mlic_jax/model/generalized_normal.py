"""The generalized normal distribution, density ~ exp(-|x / alpha|**shape): the cost of unit bins, and its cdf.

With a = 1 / shape and x = (|v| / alpha)**shape the mass within |v| is P(a, x), and that outside Q(a, x) = 1 - P, the
regularized incomplete gamma functions. jax.scipy.special has them in loops that run until the slowest element has
converged. Here both are sums of fixed length, which XLA fuses, with a gradient for every argument:

    x <= 2.5    P = x**a exp(-x) / Gamma(a) * (1/a + x / (a (a + 1)) + ...)                          (DLMF 8.7.1)
    x > 2.5     Q = x**a exp(-x) / Gamma(a) / (x + 1 - a - 1 (1 - a) / (x + 3 - a - 2 (2 - a) / ...))   (DLMF 8.9.2)

In float64 they are right to 1e-10 for shapes from 1/2 to 4.
"""

import jax
import jax.numpy as jnp
import numpy as np

SPLIT, SERIES_TERMS, FRACTION_TERMS = 2.5, 28, 24
TAIL_MAX = 40.0       # of x, where a bin has less than 1e-15 whatever the shape
FALL_MAX = -1e-6      # of log Q across a bin; more only where float32 has no digits left, 1e5 beyond the mean
DISTANCE_MIN = 1e-9   # of an edge of a bin from the mean, where a power below 1 has no derivative
SHAPE_MIN, SHAPE_MAX = 0.5, 4.0


def bin_nats(residual: jax.Array, alpha: jax.Array, shape: jax.Array | float) -> jax.Array:
  """-log of the mass of the unit bin around `residual`; broadcasts. Finite for every residual.

  Beyond TAIL_MAX the cost grows as the logarithm of the residual, and its gradient falls as 1 / residual: that of a
  Gaussian would grow without end, and that of its likelihood underflow."""
  v = jnp.abs(residual)
  inside = v < 0.5
  near, far = jnp.maximum(jnp.abs(v - 0.5), DISTANCE_MIN), v + 0.5
  near_mass, near_log_tail = _mass_and_log_tail(near / alpha, shape)
  far_mass, far_log_tail = _mass_and_log_tail(far / alpha, shape)
  peak = -jnp.log(0.5 * (near_mass + far_mass))
  # Both tails of the bin lie on one side of the mean: Q(near) - Q(far), halved, by logarithms.
  fall = jnp.where(inside, -1.0, jnp.minimum(far_log_tail - near_log_tail, FALL_MAX))
  tail = jnp.log(2.0) - near_log_tail - jnp.log(-jnp.expm1(fall))
  return jnp.where(inside, peak, tail)


def _mass_and_log_tail(z: jax.Array, shape: jax.Array | float) -> tuple[jax.Array, jax.Array]:
  """P and log Q at z = |v| / alpha, above 0."""
  a, x = 1 / shape, z**shape
  log_gamma = jax.lax.lgamma(jnp.asarray(a, z.dtype))
  small, large = jnp.minimum(x, SPLIT), jnp.maximum(x, SPLIT)
  term = total = 1 / a * jnp.ones_like(small)
  for n in range(1, SERIES_TERMS):
    term = term * small / (a + n)
    total = total + term
  # x**a is z, whose derivative at 0 is 1, where that of a power of x may be anything.
  mass = jnp.where(x < SPLIT, z, 1.0) * jnp.exp(-small - log_gamma) * total
  large = jnp.where(large > TAIL_MAX, TAIL_MAX * (1 + jnp.log(jnp.maximum(large, TAIL_MAX) / TAIL_MAX)), large)
  fraction = large + (2 * FRACTION_TERMS + 1) - a
  for n in range(FRACTION_TERMS, 0, -1):
    fraction = large + (2 * n - 1) - a - n * (n - a) / fraction
  log_tail = a * jnp.log(large) - large - log_gamma - jnp.log(fraction)
  is_small = x < SPLIT
  mass = jnp.where(is_small, mass, 0.5)      # for the logarithm below, which is not taken there
  return (jnp.where(is_small, mass, -jnp.expm1(log_tail)),
          jnp.where(is_small, jnp.log1p(-mass), log_tail))


def cdf(x: np.ndarray, alpha: float, shape: float) -> np.ndarray:
  """The cumulative distribution in float64."""
  import scipy.special  # slow to import, and coding does not need it
  tail = 0.5 * scipy.special.gammaincc(1 / shape, (np.abs(x) / alpha)**shape)
  return np.where(np.asarray(x) < 0, tail, 1 - tail)


def alpha_of_tail(outside: float, shape: np.ndarray | float) -> np.ndarray:
  """The alpha with which the probability of |x| > 1/2 is `outside`."""
  import scipy.special  # slow to import, and coding does not need it
  shape = np.asarray(shape, np.float64)
  return 0.5 / scipy.special.gammainccinv(1 / shape, outside)**(1 / shape)
