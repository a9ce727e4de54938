"""GELU from additions, multiplications and one division, so that platforms differ in its rounding only.

Versions of XLA and processors differ in their erf and erfc by more than portable files tolerate (docs/coding.md).
"""
from typing import Any

import jax
import jax.numpy as jnp

# (Phi(x) - 1/2) / x is P(x^2) / Q(x^2) up to |x| = LIMIT. Beyond LIMIT, Phi is 0 or 1 in float32. The coefficients
# (lowest power first) are a minimax fit by reweighted least squares, with an error of Phi of 3.5e-9. None is negative,
# so that no digits cancel.
LIMIT = 5.25
P = (0.398942258, 0.0327345135, 0.00461788947, 0.000158534843, 6.39235956e-06, 2.43891731e-08)
Q = (1.0, 0.248719546, 0.0280293118, 0.00182651307, 7.09011244e-05, 1.24790431e-06)


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
  *rest, highest = coefficients
  total: Any = highest  # a float here, an array after the first iteration
  for coefficient in reversed(rest):
    total = total * x + coefficient
  return total


def _normal_cdf(x: jax.Array) -> jax.Array:
  near = jnp.clip(x, -LIMIT, LIMIT)
  cdf = 0.5 + near * _polynomial(P, near * near) / _polynomial(Q, near * near)
  # Exactly 0 or 1 far from zero. Inputs of minus some hundreds occur. The rounding error of 0 would be the same for all
  # of them and add up, and it differs with and without fused multiplications.
  return jnp.where(jnp.abs(x) < LIMIT, cdf, (x > 0).astype(x.dtype))


@jax.custom_jvp
@jax.jit  # to trace it once for each shape
def _gelu(x: jax.Array) -> jax.Array:
  return x * _normal_cdf(x)


@jax.jit
def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  density, cdf = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5, _normal_cdf(x)
  return x * cdf, cdf + x * density


@_gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  value, slope = _gelu_and_slope(*primals)
  return value, tangents[0] * slope


def gelu(x: jax.Array) -> jax.Array:
  """Return x Phi(x), with the normal distribution function Phi, for x of any shape. The error is at most 2^-22 |x|.

  This is the exact GELU of the authors' weights, not its tanh approximation. bfloat16 inputs are computed in float32.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return _gelu(wide).astype(x.dtype)
