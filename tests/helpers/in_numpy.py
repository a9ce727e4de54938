"""Traced programs that NumPy evaluates: for values of many small operations, each of which XLA would compile.

An operation of a new shape takes 12 ms to lower and compile, and a gradient of a small transform has hundreds of them.
Here a function is traced as by jax.jit, and what JAX traced is computed by NumPy, equation by equation. What has no
rule here is computed by JAX. Forms (kernels/multilinear.py) are those of CPUs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mlic_jax.kernels.multilinear import traced_derivative

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def in_numpy(function: Callable) -> Callable:
  """Return the function, traced once for arguments of the same shapes and types, and evaluated by NumPy."""
  programs: dict = {}

  def run(*args):
    leaves, treedef = jax.tree.flatten(args)
    leaves = [leaf if is_key(leaf) else np.asarray(leaf) for leaf in leaves]
    kind = treedef, *((leaf.shape, leaf.dtype) for leaf in leaves)
    if kind not in programs:
      traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
      programs[kind] = traced, jax.tree.structure(shapes)
    traced, of_results = programs[kind]
    return jax.tree.unflatten(of_results, evaluate(traced.jaxpr, traced.consts, leaves))
  return run


def is_key(value: Any) -> bool:
  """Whether a value is an array of keys of jax.random, which NumPy does not have."""
  if type(value) is np.ndarray:  # isinstance takes longer than many an operation
    return False
  return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended)


def evaluate(jaxpr, consts, args) -> list:
  """Return the results of a traced program as arrays of NumPy."""
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(from_jax, consts), *args), strict=True))
  read = lambda atom: np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]
  for equation in jaxpr.eqns:
    given = [read(atom) for atom in equation.invars]
    rule = None if any(map(is_key, given)) else rule_of(equation)
    if rule is None:
      results = equation.primitive.bind(*given, **equation.params)
      results = [from_jax(each) for each in (results if equation.primitive.multiple_results else [results])]
    else:
      results = rule(*given, **equation.params)
      results = results if equation.primitive.multiple_results else [results]
    for variable, result in zip(equation.outvars, results, strict=True):
      values[variable] = result if is_key(result) else np.asarray(result, variable.aval.dtype)
      assert values[variable].shape == variable.aval.shape, equation.primitive.name
  return [read(atom) for atom in jaxpr.outvars]


def from_jax(value):
  return value if is_key(value) else np.asarray(value)


def call(*args, jaxpr, **_):
  """What calls another program, which may come with its constants."""
  return evaluate(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), args)


def rule_of(equation) -> Callable | None:
  """The rule of an equation. Names of calls, and of the program that they call, depend on the version of JAX."""
  if (rule := RULES.get(equation.primitive.name)) is not None:
    return rule
  if equation.primitive.name == "scan":  # newer versions of JAX have other parameters
    return scan if "num_carry" in equation.params else None
  called = [equation.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in equation.params]
  return (lambda *args, **_: call(*args, jaxpr=called[0])) if called else None


@functools.cache
def program_of(form, index: int, *arrays: jax.ShapeDtypeStruct):
  return jax.make_jaxpr(functools.partial(traced_derivative, form=form, index=index, on_cpu=True))(*arrays)


def derivative(*others, form, index, **_):
  arrays = (jax.ShapeDtypeStruct(each.shape, each.dtype) for each in others)
  return call(*others, jaxpr=program_of(form, index, *arrays))[0]


def broadcast_in_dim(x, *, shape, broadcast_dimensions, **_):
  sides = np.ones(len(shape), int)
  sides[list(broadcast_dimensions)] = x.shape
  return np.broadcast_to(x.reshape(sides), shape)


def pad(x, value, *, padding_config, **_):
  for axis, (low, high, inside) in enumerate(padding_config):
    if low == high == inside == 0:
      continue
    count = x.shape[axis]
    spread = np.full((*x.shape[:axis], max(0, (count - 1) * (inside + 1) + 1), *x.shape[axis + 1:]), value, x.dtype)
    spread[(slice(None),) * axis + (slice(None, None, inside + 1),)] = x
    margins = [(0, 0)] * axis + [(max(low, 0), max(high, 0))] + [(0, 0)] * (x.ndim - axis - 1)
    x = np.pad(spread, margins, constant_values=value)
    x = x[(slice(None),) * axis + (slice(max(-low, 0), x.shape[axis] - max(-high, 0)),)]
  return x


def wide(x):
  """What sums add, in float64 for float32: two ways to compute the same then differ by less."""
  return x.astype(np.float64) if x.dtype == np.float32 else x


def sum_of_products(subscripts, a, b):
  return np.einsum(subscripts, wide(a), wide(b), optimize=True)


def dot_general(a, b, *, dimension_numbers, **_):
  (of_a, of_b), (batch_a, batch_b) = dimension_numbers
  names_a, names_b = list(LETTERS[:a.ndim]), list(LETTERS[a.ndim:a.ndim + b.ndim])
  for i, j in zip((*of_a, *batch_a), (*of_b, *batch_b)):
    names_b[j] = names_a[i]
  free = lambda names, *bound: [name for i, name in enumerate(names) if i not in sum(bound, ())]
  rest_a, rest_b = free(names_a, tuple(of_a), tuple(batch_a)), free(names_b, tuple(of_b), tuple(batch_b))
  result = [*(names_a[i] for i in batch_a), *rest_a, *rest_b]
  return sum_of_products(f"{''.join(names_a)},{''.join(names_b)}->{''.join(result)}", a, b)


def conv_general_dilated(x, kernel, *, window_strides, padding, feature_group_count, lhs_dilation, rhs_dilation,
                         dimension_numbers, batch_group_count, **_):
  of_x, of_kernel, of_result = ([axes[0], *axes[2:], axes[1]] for axes in dimension_numbers)  # batch and features apart
  x, kernel = x.transpose(of_x), np.moveaxis(kernel.transpose(of_kernel), 0, -1)
  spread = lambda dilation, margins: [(low, high, step - 1) for (low, high), step in zip(margins, dilation)]
  x = pad(x, 0, padding_config=((0, 0, 0), *spread(lhs_dilation, padding), (0, 0, 0)))
  kernel = pad(kernel, 0, padding_config=(*spread(rhs_dilation, ((0, 0),) * 2), (0, 0, 0), (0, 0, 0)))
  (rows, columns, inputs, features), groups = kernel.shape, feature_group_count
  x = x.reshape(*x.shape[:3], groups, inputs)
  windows = np.lib.stride_tricks.sliding_window_view(x, (rows, columns), (1, 2))
  windows = windows[:, ::window_strides[0], ::window_strides[1]]
  kernel = kernel.reshape(rows, columns, inputs, groups, features // groups)
  if batch_group_count > 1:  # which are groups of features, too
    apart = zip(np.split(windows, batch_group_count), np.split(kernel, batch_group_count, -1))
  else:
    apart = [(windows, kernel)]
  results = [sum_of_products("bhwgcij,ijcgf->bhwgf", *each) for each in apart]
  results = [each.reshape(*each.shape[:3], -1) for each in results]
  return np.concatenate(results, -1).transpose(np.argsort(of_result))


def starts_within(shape, sizes, starts):
  """Slices of a dynamic slice, which starts where it fits."""
  return tuple(slice(start, start + size) for start, size in zip(np.clip(starts, 0, np.subtract(shape, sizes)), sizes))


def dynamic_slice(x, *starts, slice_sizes, **_):
  return x[starts_within(x.shape, slice_sizes, starts)]


def dynamic_update_slice(x, update, *starts):
  x = x.copy()
  x[starts_within(x.shape, update.shape, starts)] = update
  return x


def while_loop(*args, cond_jaxpr, body_jaxpr, cond_nconsts, body_nconsts, **_):
  of_cond, of_body = args[:cond_nconsts], args[cond_nconsts:cond_nconsts + body_nconsts]
  state = args[cond_nconsts + body_nconsts:]
  while call(*of_cond, *state, jaxpr=cond_jaxpr)[0]:
    state = call(*of_body, *state, jaxpr=body_jaxpr)
  return state


def scan(*args, jaxpr, length, reverse, num_consts, num_carry, **_):
  consts, carry, stacked = args[:num_consts], args[num_consts:num_consts + num_carry], args[num_consts + num_carry:]
  outputs: list = [None] * length
  for i in reversed(range(length)) if reverse else range(length):
    results = call(*consts, *carry, *(each[i] for each in stacked), jaxpr=jaxpr)
    carry, outputs[i] = results[:num_carry], results[num_carry:]
  return [*carry, *(np.stack(each) for each in zip(*outputs))]


def split(x, *, sizes, axis, **_):
  return np.split(x, np.cumsum(sizes)[:-1], axis)


def iota(*, shape, dimension, dtype, **_):
  return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(
      [-1 if axis == dimension else 1 for axis in range(len(shape))]), shape)


def elementwise(function: Callable) -> Callable:
  return lambda *args, **_: function(*args)


def reduction(function: Callable) -> Callable:
  return lambda x, *, axes, **_: np.asarray(function(x, axis=axes), x.dtype)


RULES = {name: elementwise(function) for name, function in dict(
    add=np.add, add_any=np.add, sub=np.subtract, mul=np.multiply, max=np.maximum, min=np.minimum, rem=np.fmod,
    neg=np.negative, abs=np.abs, sign=np.sign, square=np.square, sqrt=np.sqrt, rsqrt=lambda x: 1 / np.sqrt(x),
    exp=np.exp, log=np.log, log1p=np.log1p, sin=np.sin, cos=np.cos, tanh=np.tanh, pow=np.power, floor=np.floor,
    erf=scipy.special.erf, erfc=scipy.special.erfc,
    logistic=lambda x: 1 / (1 + np.exp(-x)), eq=np.equal, ne=np.not_equal, lt=np.less, le=np.less_equal,
    gt=np.greater, ge=np.greater_equal, clamp=lambda low, x, high: np.clip(x, low, high),
    select_n=lambda which, *cases: np.choose(which, cases) if len(cases) > 2 else np.where(which, *cases[::-1]),
    div=lambda a, b: np.asarray(np.trunc(a / b), a.dtype) if np.issubdtype(a.dtype, np.integer) else a / b,
    stop_gradient=lambda x: x, copy=lambda x: x, layout_constraint=lambda x: x,
    optimization_barrier=lambda *args: args).items()}
RULES |= {"and": elementwise(np.bitwise_and), "or": elementwise(np.bitwise_or), "not": elementwise(np.invert),
          "while": while_loop, "reduce_sum": reduction(lambda x, axis: wide(x).sum(axis)),
          "reduce_max": reduction(np.max), "reduce_min": reduction(np.min), "reduce_prod": reduction(np.prod)}
RULES |= dict(
    multilinear_derivative=derivative, dot_general=dot_general, conv_general_dilated=conv_general_dilated,
    broadcast_in_dim=broadcast_in_dim, pad=pad, split=split, iota=iota, dynamic_slice=dynamic_slice,
    dynamic_update_slice=dynamic_update_slice, device_put=lambda *args, **_: args,
    cond=lambda index, *args, branches, **_: call(*args, jaxpr=branches[np.clip(index, 0, len(branches) - 1)]),
    round=lambda x, *, rounding_method, **_: np.rint(x) if rounding_method else np.trunc(x + np.copysign(0.5, x)),
    integer_pow=lambda x, *, y, **_: x**y,
    convert_element_type=lambda x, *, new_dtype, **_: x.astype(new_dtype),
    reshape=lambda x, *, new_sizes, dimensions, **_: (
        x if dimensions is None else x.transpose(dimensions)).reshape(new_sizes),
    transpose=lambda x, *, permutation, **_: x.transpose(permutation),
    squeeze=lambda x, *, dimensions, **_: x.squeeze(dimensions),
    rev=lambda x, *, dimensions, **_: np.flip(x, dimensions),
    concatenate=lambda *args, dimension, **_: np.concatenate(args, dimension),
    slice=lambda x, *, start_indices, limit_indices, strides, **_: x[tuple(
        map(slice, start_indices, limit_indices, strides or (1,) * x.ndim))])
