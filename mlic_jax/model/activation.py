"""GELU of additions, multiplications and one division, so that compilers and devices differ in its rounding alone.

Versions of XLA, and processors, have an erf and an erfc of their own each, and portable files have to survive where
they differ (docs/coding.md).
"""
from typing import Any

import jax
import jax.numpy as jnp

# (Phi(x) - 1/2) / x as P(x^2) / Q(x^2) up to |x| = LIMIT, beyond which Phi is 0 or 1 to a rounding of float32: of the
# rational functions of these degrees the one that keeps Phi to 3.5e-9 (least squares, reweighted towards the least
# largest error). No coefficient is negative, so that nothing cancels. Lowest power first.
LIMIT = 5.25
P = (0.398942258, 0.0327345135, 0.00461788947, 0.000158534843, 6.39235956e-06, 2.43891731e-08)
Q = (1.0, 0.248719546, 0.0280293118, 0.00182651307, 7.09011244e-05, 1.24790431e-06)


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
  *rest, highest = coefficients
  total: Any = highest  # an array from the next power on
  for coefficient in reversed(rest):
    total = total * x + coefficient
  return total


def _share_below(x: jax.Array) -> jax.Array:
  near = jnp.clip(x, -LIMIT, LIMIT)
  share = 0.5 + near * _polynomial(P, near * near) / _polynomial(Q, near * near)
  # Far from zero exactly 0 or 1: inputs of minus some hundreds occur, and what rounding leaves of 0 is the same for all
  # of them, with and without fused multiplications another number, and adds up.
  return jnp.where(jnp.abs(x) < LIMIT, share, (x > 0).astype(x.dtype))


@jax.custom_jvp
@jax.jit  # traced once for each shape
def _gelu(x: jax.Array) -> jax.Array:
  return x * _share_below(x)


@jax.jit
def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  density, share = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5, _share_below(x)
  return x * share, share + x * density


@_gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  value, slope = _gelu_and_slope(*primals)
  return value, tangents[0] * slope


def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), x times the normal distribution's share below it, of any shape; within 2^-22 |x| of it in float32.

  Not its approximation by tanh, which the authors' weights do not want. Of x in bfloat16, computed in float32.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return _gelu(wide).astype(x.dtype)
