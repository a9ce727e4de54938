"""Rounding and bounding with the gradients that learned compression uses."""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


@jax.custom_jvp
def ste_round(x: jax.Array) -> jax.Array:
  """Round half to even, with the derivative of the identity (straight-through; Theis et al., ICLR 2017)."""
  return jnp.round(x)


ste_round.defjvp(lambda primals, tangents: (jnp.round(primals[0]), tangents[0]))


@jax.custom_jvp
def lower_bound(x: jax.Array, bound: float) -> jax.Array:
  """Return max(x, bound) with a gradient below the bound where a descent step increases x, as in CompressAI.

  In forward mode the derivative is that of max, which is 0 below the bound."""
  return jnp.maximum(x, bound)


# The tangent where the mask is True, and 0 elsewhere. It is a primitive because its transpose passes negative
# cotangents everywhere: a descent step subtracts them.
_masked_p = Primitive("lower_bound_tangent")
lower_bound.defjvps(lambda tangent, _, x, bound: _masked_p.bind(x >= bound, tangent), None)


def _masked(mask: jax.Array, tangent: jax.Array) -> jax.Array:
  return jnp.where(mask, tangent, 0)


def _masked_jvp(primals, tangents):
  (mask, _), (_, tangent) = primals, tangents
  return _masked_p.bind(*primals), tangent if type(tangent) is ad.Zero else _masked_p.bind(mask, tangent)


def _masked_transpose(cotangent, mask, _):
  return None, cotangent if type(cotangent) is ad.Zero else jnp.where(mask | (cotangent < 0), cotangent, 0)


def _masked_batch(args, axes):
  count = next(each.shape[axis] for each, axis in zip(args, axes) if axis is not None)
  moved = [jnp.broadcast_to(each, (count, *jnp.shape(each))) if axis is None else jnp.moveaxis(each, axis, 0)
           for each, axis in zip(args, axes)]
  return _masked_p.bind(*moved), 0


_masked_p.def_impl(_masked)
_masked_p.def_abstract_eval(lambda mask, tangent: tangent)
ad.primitive_jvps[_masked_p] = _masked_jvp
ad.primitive_transposes[_masked_p] = _masked_transpose
batching.primitive_batchers[_masked_p] = _masked_batch
mlir.register_lowering(_masked_p, mlir.lower_fun(_masked, multiple_results=False))
