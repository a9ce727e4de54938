"""A scan whose iterations read and write a few long vectors instead of many arrays, for GPUs.

`jax.lax.scan` slices every stacked parameter, slices every residual of the forward pass in its gradient, and stacks the
gradient of every parameter. For a step of this codec these are two thirds of all kernels. They are small, and a GPU
waits for their launches. Here an iteration reads its parameters from one vector, stores its residuals in another one,
and writes the gradients of its parameters to a third.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KERNEL_NDIM = 4  # number of axes of a convolution kernel


@dataclasses.dataclass(frozen=True)
class Vectors:
  """Layout of a tree of arrays as one vector for each dtype.

  Attributes:
    treedef: structure of the tree.
    arrays: shape and dtype of each leaf.
    outputs_first: whether convolution kernels (size, size, inputs, outputs) are stored as (outputs, size, size,
      inputs), the layout of cuDNN, so that a part of the vector is a kernel without a transpose.
  """
  treedef: Any
  arrays: tuple[jax.ShapeDtypeStruct, ...]
  outputs_first: bool = False

  @classmethod
  def of(cls, tree: Any, outputs_first: bool = False) -> "Vectors":
    leaves, treedef = jax.tree.flatten(tree)
    return cls(treedef, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves), outputs_first)

  def pack(self, tree: Any) -> dict[str, jax.Array]:
    """Return {dtype: vector} of a tree."""
    leaves = self.treedef.flatten_up_to(tree)
    return {dtype: jnp.concatenate([self._to_vector_layout(leaves[i]).reshape(-1) for i in indices])
            for dtype, indices in self._by_dtype().items()}

  def unpack(self, vectors: dict[str, jax.Array]) -> Any:
    """Return the tree of {dtype: vector}."""
    split = lambda dtype, sizes: jax.lax.split(vectors[dtype], sizes)
    return self._tree(split)

  def unpack_row(self, matrices: dict[str, jax.Array], k: jax.Array) -> Any:
    """Return the tree of row k of {dtype: matrix}.

    Every array is sliced from the matrix itself, not from its row. XLA then reads all arrays of one size in one kernel,
    and no kernel copies the row."""
    def split(dtype, sizes):
      ends = np.cumsum(sizes)
      return [jax.lax.dynamic_slice(matrices[dtype], (k, end - size), (1, size)) for end, size in zip(ends, sizes)]
    return self._tree(split)

  def _tree(self, split: Callable[[str, list[int]], Any]) -> Any:
    leaves: list[Any] = [None] * len(self.arrays)
    for dtype, indices in self._by_dtype().items():
      for i, part in zip(indices, split(dtype, [math.prod(self.arrays[i].shape) for i in indices])):
        leaves[i] = self._from_vector_layout(part, self.arrays[i].shape)
    return jax.tree.unflatten(self.treedef, leaves)

  def _by_dtype(self) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for i, array in enumerate(self.arrays):
      indices.setdefault(np.dtype(array.dtype).name, []).append(i)
    return indices

  def _to_vector_layout(self, leaf: jax.Array) -> jax.Array:
    return jnp.moveaxis(leaf, -1, 0) if self.outputs_first and leaf.ndim == KERNEL_NDIM else leaf

  def _from_vector_layout(self, part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if self.outputs_first and len(shape) == KERNEL_NDIM:
      return jnp.moveaxis(part.reshape(shape[-1], *shape[:-1]), 0, -1)
    return part.reshape(shape)


def packed_scan(body: Callable, shared: Any, init: Any, params: Any, inputs: Any) -> tuple[Any, Any]:
  """Scan body(shared, carry, params_k, inputs_k) -> (carry, outputs_k), with a gradient in reverse mode only.

  Args:
    shared: floating-point arrays that every iteration reads.
    init: initial carry, floating-point arrays.
    params: floating-point arrays, stacked on a leading axis.
    inputs: arrays of any dtype, stacked on a leading axis. Floating-point arrays have a gradient.

  Returns:
    The last carry and the stacked outputs, as in `jax.lax.scan`.
  """
  first = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
  of_params, indices = Vectors.of(first(params), outputs_first=True), jnp.arange(jax.tree.leaves(params)[0].shape[0])
  leaves, treedef = jax.tree.flatten(inputs)
  is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
  floats, others = ([leaf for leaf, each in zip(leaves, is_float) if each == kind] for kind in (True, False))

  def step(shared, carry, params, floats, others):
    floats, others = iter(floats), iter(others)
    inputs = jax.tree.unflatten(treedef, [next(floats if each else others) for each in is_float])
    return body(shared, carry, params, inputs)

  residuals: Any = None  # layout of the residuals, known after the forward pass is traced

  @jax.custom_vjp
  def run(shared, init, params, floats, others):
    vectors = jax.vmap(of_params.pack)(params)

    def iteration(carry, each):
      k, floats, others = each
      return step(shared, carry, of_params.unpack_row(vectors, k), floats, others)

    return jax.lax.scan(iteration, init, (indices, floats, others))

  def forward(shared, init, params, floats, others):
    vectors = jax.vmap(of_params.pack)(params)

    def iteration(carry, each):
      nonlocal residuals
      k, floats, others = each
      params = of_params.unpack_row(vectors, k)
      of_floats = lambda shared, carry, params, floats: step(shared, carry, params, floats, others)
      (carry, outputs), backward = jax.vjp(of_floats, shared, carry, params, floats)
      residuals, arrays = _Residuals.of(backward, (shared, params, floats, others))
      return carry, (outputs, arrays)

    carry, (outputs, arrays) = jax.lax.scan(iteration, init, (indices, floats, others))
    return (carry, outputs), (shared, vectors, floats, others, arrays)

  def backward(saved, cotangents):
    shared, vectors, floats, others, arrays = saved
    of_carry, of_outputs = cotangents

    def iteration(state, each):
      of_carry, of_shared = state
      k, floats, others, of_outputs = each
      backward = residuals.restore(arrays, k, (shared, of_params.unpack_row(vectors, k), floats, others))
      more_of_shared, of_carry, gradients, of_floats = backward((of_carry, of_outputs))
      return (of_carry, jax.tree.map(jnp.add, of_shared, more_of_shared)), (of_params.pack(gradients), of_floats)

    start = of_carry, jax.tree.map(jnp.zeros_like, shared)
    (of_init, of_shared), (gradients, of_floats) = jax.lax.scan(
        iteration, start, (indices, floats, others, of_outputs), reverse=True)
    return of_shared, of_init, jax.vmap(of_params.unpack)(gradients), of_floats, None

  run.defvjp(forward, backward)
  return run(shared, init, params, floats, others)


@dataclasses.dataclass(frozen=True)
class _Residuals:
  """Layout of the residuals of a VJP function: vectors of all arrays that an iteration does not have anyway."""
  treedef: Any
  known: tuple[int | None, ...]  # index of each leaf in the available arrays, None for a stored leaf
  vectors: Vectors

  @classmethod
  def of(cls, function: Any, available: Any) -> "tuple[_Residuals, dict[str, jax.Array]]":
    """Return the layout and the vectors of a VJP function, without the arrays in `available`."""
    leaves, treedef = jax.tree.flatten(function)
    indices = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(available))}
    known = tuple(indices.get(id(leaf)) for leaf in leaves)
    rest = [leaf for leaf, index in zip(leaves, known) if index is None]
    vectors = Vectors.of(rest)
    return cls(treedef, known, vectors), vectors.pack(rest)

  def restore(self, matrices: dict[str, jax.Array], k: jax.Array, available: Any) -> Callable:
    """Return the VJP function of iteration k, given the stacked vectors and the available arrays."""
    rest, given = iter(self.vectors.unpack_row(matrices, k)), jax.tree.leaves(available)
    return jax.tree.unflatten(self.treedef, [next(rest) if index is None else given[index] for index in self.known])
