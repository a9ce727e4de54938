"""Multilinear maps with custom derivatives, for reverse mode and forward mode.

`jax.custom_vjp` defines the backward pass of a function, but does not support `jax.jvp`. A multilinear map does not
need it, because one scalar function describes the map and all its transposes:

    form(a_0, ..., a_n) = <map(a_0, ..., a_{n-1}), a_n>        a_n is a cotangent of the result of the map

The derivative of the form by a_n is the map itself. The derivative by another argument is the transpose of the map by
this argument. A form implements these derivatives, each as a function of all arguments but one, and may have another
implementation on CPU. All are one JAX primitive, whose rules follow from linearity:

    JVP         sum over the arguments, each replaced by its tangent in turn
    transpose   by argument i: the derivative of the form by a_i, with the cotangent in place of the result
    vmap        the same form for a larger batch, or `BatchedForm`
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


@dataclasses.dataclass(frozen=True)
class Form:
  """A scalar function that is linear in each argument. It is hashable, as a parameter of a primitive.

  Attributes:
    shapes: the shapes of a_0, ..., a_n. All arguments have the same dtype.
  """
  shapes: tuple[tuple[int, ...], ...]

  def __call__(self, *args: jax.Array) -> jax.Array:
    """Applies the map: a_0, ..., a_{n-1} -> an array of the shape of a_n."""
    return _derivative_p.bind(*args, form=self, index=len(self.shapes) - 1)

  def derivative(self, index: int, on_cpu: bool, *others: jax.Array) -> jax.Array:
    """Returns the derivative of the form by a_index, given all other arguments in their order.

    `on_cpu` is True if the program is lowered for CPU."""
    raise NotImplementedError

  def merged_batch(self, batched: tuple[bool, ...], count: int) -> "Form | None":
    """Returns the form with `count` examples merged into the first axis of the `batched` arguments.

    None if there is no such form, which is the default."""
    return None


@dataclasses.dataclass(frozen=True)
class BatchedForm(Form):
  """Sum of a form over examples. `batched` arguments have a leading axis of examples; the others are shared."""
  form: Form
  batched: tuple[bool, ...]

  def derivative(self, index: int, on_cpu: bool, *others: jax.Array) -> jax.Array:
    axes = tuple(0 if batched else None for i, batched in enumerate(self.batched) if i != index)
    each = jax.vmap(functools.partial(self.form.derivative, index, on_cpu), axes)(*others)
    return each if self.batched[index] else each.sum(0)


_derivative_p = Primitive("multilinear_derivative")


@functools.partial(jax.jit, static_argnames=("form", "index", "on_cpu"))  # to trace it once for each shape
def traced_derivative(*others: jax.Array, form: Form, index: int, on_cpu: bool) -> jax.Array:
  """Implements the primitive in a lowered program."""
  return form.derivative(index, on_cpu, *others)


@functools.partial(jax.jit, static_argnames=("form", "index"))
def _compiled(*others: jax.Array, form: Form, index: int) -> jax.Array:
  return _derivative_p.bind(*others, form=form, index=index)


def _abstract_eval(*others, form: Form, index: int):
  shapes = form.shapes[:index] + form.shapes[index + 1:]
  if tuple(each.shape for each in others) != shapes or len({each.dtype for each in others}) > 1:
    raise TypeError(f"the derivative {index} of {form} got {others}")
  return others[0].update(shape=form.shapes[index])


def _jvp(primals, tangents, *, form: Form, index: int):
  out, total = _derivative_p.bind(*primals, form=form, index=index), None
  for i, tangent in enumerate(tangents):
    if type(tangent) is not ad.Zero:
      term = _derivative_p.bind(*primals[:i], tangent, *primals[i + 1:], form=form, index=index)
      total = term if total is None else total + term
  return out, ad.Zero.from_primal_value(out) if total is None else total


def _transpose(cotangent, *others, form: Form, index: int):
  (position,) = (i for i, each in enumerate(others) if ad.is_undefined_primal(each))
  if type(cotangent) is ad.Zero:
    return (None,) * len(others)
  arguments = [*others[:index], cotangent, *others[index:]]
  argument = position + (position >= index)
  del arguments[argument]
  gradient = _derivative_p.bind(*arguments, form=form, index=argument)
  return tuple(gradient if i == position else None for i in range(len(others)))


def _batch(others, axes, *, form: Form, index: int):
  count = next(each.shape[axis] for each, axis in zip(others, axes) if axis is not None)
  others = [each if axis is None else jnp.moveaxis(each, axis, 0) for each, axis in zip(others, axes)]
  batched = [axis is not None for axis in axes]
  batched.insert(index, True)
  if (merged_batch := form.merged_batch(tuple(batched), count)) is not None:
    merged = [each if axis is None else each.reshape(-1, *each.shape[2:]) for each, axis in zip(others, axes)]
    out = _derivative_p.bind(*merged, form=merged_batch, index=index)
    return out.reshape(count, *form.shapes[index]), 0
  shapes = tuple((count, *shape) if each else shape for each, shape in zip(batched, form.shapes))
  return _derivative_p.bind(*others, form=BatchedForm(shapes, form, tuple(batched)), index=index), 0


_derivative_p.def_impl(_compiled)
_derivative_p.def_abstract_eval(_abstract_eval)
ad.primitive_jvps[_derivative_p] = _jvp
ad.primitive_transposes[_derivative_p] = _transpose
batching.primitive_batchers[_derivative_p] = _batch
for _platform in ("cpu", None):
  _lowering = functools.partial(traced_derivative, on_cpu=_platform == "cpu")
  mlir.register_lowering(_derivative_p, mlir.lower_fun(_lowering, multiple_results=False), platform=_platform)
