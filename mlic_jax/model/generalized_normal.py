"""The generalized normal distribution, density ~ exp(-|x / alpha|**shape): the cost of unit bins, and its cdf.

With a = 1 / shape and x = (|v| / alpha)**shape the mass within |v| is P(a, x), and that outside Q(a, x) = 1 - P, the
regularized incomplete gamma functions. jax.scipy.special has them in loops that run until the slowest element has
converged. Here both are sums of fixed length, which XLA fuses, with a gradient for every argument:

    x <= 2.5    P = x**a exp(-x) / Gamma(a) * (1/a + x / (a (a + 1)) + ...)                          (DLMF 8.7.1)
    x > 2.5     Q = x**a exp(-x) / Gamma(a) / (x + 1 - a - 1 (1 - a) / (x + 3 - a - 2 (2 - a) / ...))   (DLMF 8.9.2)

For shapes from 1/2 to 4 the terms of float64 are right to 1e-10, and those of float32 to 1e-7.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

SPLIT = 2.5
TERMS, TERMS_FLOAT64 = (15, 10), (28, 24)   # of the series and of the fraction
TAIL_MAX = 40.0       # of x, where a bin has less than 1e-15 whatever the shape
FALL_MAX = -1e-6      # of log Q across a bin; more only where float32 has no digits left, 1e5 beyond the mean
DISTANCE_MIN = 1e-9   # of an edge of a bin from the mean, where a power below 1 has no derivative
SHAPE_MIN, SHAPE_MAX = 0.5, 4.0


@jax.custom_jvp
def bin_nats(residual: jax.Array, alpha: jax.Array, shape: jax.Array | float) -> jax.Array:
  """-log of the mass of the unit bin around `residual`; broadcasts. Finite for every residual.

  Beyond TAIL_MAX the cost grows as the logarithm of the residual, and its gradient falls as 1 / residual: that of a
  Gaussian would grow without end, and that of its likelihood underflow."""
  return _nats(residual, alpha, shape)


def _nats(residual: jax.Array, alpha: jax.Array, shape: jax.Array | float) -> jax.Array:
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


def _jvp_of_bin(primals, tangents):
  """The derivative by each argument is computed with the value.

  Reverse mode would store every term of the sums. On CPU XLA repeats what follows such arrays in all of their readers,
  the gradients of the slices, element by element: a step of latent optimization took twice as long."""
  moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]
  out_shape = jnp.broadcast_shapes(*map(jnp.shape, primals))
  spread = lambda x: jnp.broadcast_to(x, out_shape)

  def of_moving(*chosen):
    arguments = list(primals)
    for i, value in zip(moving, chosen):
      arguments[i] = value
    return _nats(*arguments)

  nats, pull_back = jax.vjp(of_moving, *(spread(primals[i]) for i in moving))
  derivatives = pull_back(jnp.ones_like(nats))
  return nats, sum(each * spread(tangents[i]) for i, each in zip(moving, derivatives))


bin_nats.defjvp(_jvp_of_bin, symbolic_zeros=True)


@jax.custom_jvp
def _mass_and_log_tail(z: jax.Array, shape: jax.Array | float) -> tuple[jax.Array, jax.Array]:
  """P and log Q at z = |v| / alpha, above 0."""
  return _mass_log_tail_and_fraction(z, shape)[:2]


def _mass_log_tail_and_fraction(z, shape) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The third result is the continued fraction."""
  a, x = 1 / shape, z**shape
  log_gamma = jax.lax.lgamma(jnp.asarray(a, z.dtype))
  series_terms, fraction_terms = TERMS_FLOAT64 if z.dtype == np.float64 else TERMS
  small, large = jnp.minimum(x, SPLIT), _with_slow_tail(jnp.maximum(x, SPLIT))
  term = total = 1 / a * jnp.ones_like(small)
  for n in range(1, series_terms):
    term = term * small / (a + n)
    total = total + term
  # x**a is z, whose derivative at 0 is 1, where that of a power of x may be anything.
  mass = jnp.where(x < SPLIT, z, 1.0) * jnp.exp(-small - log_gamma) * total
  fraction = large + (2 * fraction_terms + 1) - a
  for n in range(fraction_terms, 0, -1):
    fraction = large + (2 * n - 1) - a - n * (n - a) / fraction
  log_tail = a * jnp.log(large) - large - log_gamma - jnp.log(fraction)
  is_small = x < SPLIT
  mass = jnp.where(is_small, mass, 0.5)      # for the logarithm below, which is not taken there
  return (jnp.where(is_small, mass, -jnp.expm1(log_tail)),
          jnp.where(is_small, jnp.log1p(-mass), log_tail), fraction)


def _with_slow_tail(x: jax.Array) -> jax.Array:
  """x, which grows as its logarithm beyond TAIL_MAX."""
  return jnp.where(x > TAIL_MAX, TAIL_MAX * (1 + jnp.log(jnp.maximum(x, TAIL_MAX) / TAIL_MAX)), x)


def _jvp_of_mass(primals, tangents):
  """The derivatives by z need no sum; those by the shape are taken through the sums."""
  (z, shape), (dz, dshape) = primals, tangents
  mass, log_tail, fraction = _mass_log_tail_and_fraction(z, shape)
  of_mass = of_log_tail = jnp.zeros_like(mass)
  if not isinstance(dz, SymbolicZero):
    a, x = 1 / shape, z**shape
    # dP/dz is the density of z, and dQ/dx / Q = -fraction / x, with the slow tail in place of x.
    density = shape * jnp.exp(-jnp.minimum(x, SPLIT) - jax.lax.lgamma(jnp.asarray(a, z.dtype)))
    slowed = jnp.where(x > TAIL_MAX, TAIL_MAX / _with_slow_tail(x), 1.0)
    far = -shape * fraction * slowed / z
    of_mass = jnp.where(x < SPLIT, density, -jnp.exp(log_tail) * far) * dz
    of_log_tail = jnp.where(x < SPLIT, -density / (1 - jnp.where(x < SPLIT, mass, 0.5)), far) * dz
  if not isinstance(dshape, SymbolicZero):
    of_shape = lambda shape: _mass_log_tail_and_fraction(z, shape)[:2]
    _, by_shape = jax.jvp(of_shape, (shape,), (jnp.ones_like(shape),))
    of_mass, of_log_tail = (total + each * dshape for total, each in zip((of_mass, of_log_tail), by_shape))
  return (mass, log_tail), (of_mass, of_log_tail)


_mass_and_log_tail.defjvp(_jvp_of_mass, symbolic_zeros=True)


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
