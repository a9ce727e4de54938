"""Rounding and bounding with the gradients that learned compression wants."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def ste_round(x: jax.Array) -> jax.Array:
  """Rounds half to even; the gradient passes straight through (Theis et al., ICLR 2017)."""
  return jnp.round(x)


ste_round.defjvp(lambda primals, tangents: (jnp.round(primals[0]), tangents[0]))


@jax.custom_vjp
def lower_bound(x: jax.Array, bound: float) -> jax.Array:
  """max(x, bound); the gradient also passes below the bound where a descent step would raise x."""
  return jnp.maximum(x, bound)


def _lower_bound_fwd(x, bound):
  return jnp.maximum(x, bound), (x, bound)


def _lower_bound_bwd(residuals, g):
  x, bound = residuals
  return jnp.where((x >= bound) | (g < 0), g, 0), None


lower_bound.defvjp(_lower_bound_fwd, _lower_bound_bwd)
