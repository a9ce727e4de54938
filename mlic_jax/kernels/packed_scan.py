"""A scan whose iterations read and write a few long vectors in place of many arrays, for GPUs.

`jax.lax.scan` takes a slice of every stacked parameter, and in its gradient of everything that the forward pass has
kept, and stacks the gradient of every parameter: for a step of this codec these are two thirds of all kernels, each of
them small, and a GPU waits for the launches. Here an iteration reads its parameters from one vector, keeps what the
gradient needs in another, and writes the gradients of its parameters to a third.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

IS_KERNEL = 4  # axes of the kernel of a convolution


@dataclasses.dataclass(frozen=True)
class Vectors:
  """A tree of arrays as one vector for each dtype.

  Attributes:
    treedef: of the tree.
    arrays: shape and dtype of each leaf.
    outputs_first: kernels of convolutions (size, size, inputs, outputs) lie in the vector as (outputs, size, size,
      inputs), which is what cuDNN reads, so that a part of the vector is a kernel without a transposition.
  """
  treedef: Any
  arrays: tuple[jax.ShapeDtypeStruct, ...]
  outputs_first: bool = False

  @classmethod
  def of(cls, tree: Any, outputs_first: bool = False) -> "Vectors":
    leaves, treedef = jax.tree.flatten(tree)
    return cls(treedef, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves), outputs_first)

  def pack(self, tree: Any) -> dict[str, jax.Array]:
    """{dtype: vector} of a tree."""
    leaves = self.treedef.flatten_up_to(tree)
    return {dtype: jnp.concatenate([self._moved(leaves[i]).reshape(-1) for i in places])
            for dtype, places in self._by_dtype().items()}

  def unpack(self, vectors: dict[str, jax.Array]) -> Any:
    """The tree of {dtype: vector}."""
    split = lambda dtype, sizes: jax.lax.split(vectors[dtype], sizes)
    return self._tree(split)

  def unpack_row(self, matrices: dict[str, jax.Array], k: jax.Array) -> Any:
    """The tree of the vectors that are row k of {dtype: matrix}.

    Every array is read from the matrix itself, not from its row: XLA then reads all arrays of one size in one kernel,
    and no kernel copies the row."""
    def split(dtype, sizes):
      ends = np.cumsum(sizes)
      return [jax.lax.dynamic_slice(matrices[dtype], (k, end - size), (1, size)) for end, size in zip(ends, sizes)]
    return self._tree(split)

  def _tree(self, split: Callable[[str, list[int]], Any]) -> Any:
    leaves: list[Any] = [None] * len(self.arrays)
    for dtype, places in self._by_dtype().items():
      for i, part in zip(places, split(dtype, [math.prod(self.arrays[i].shape) for i in places])):
        leaves[i] = self._moved_back(part, self.arrays[i].shape)
    return jax.tree.unflatten(self.treedef, leaves)

  def _by_dtype(self) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, array in enumerate(self.arrays):
      places.setdefault(np.dtype(array.dtype).name, []).append(i)
    return places

  def _moved(self, leaf: jax.Array) -> jax.Array:
    return jnp.moveaxis(leaf, -1, 0) if self.outputs_first and leaf.ndim == IS_KERNEL else leaf

  def _moved_back(self, part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if self.outputs_first and len(shape) == IS_KERNEL:
      return jnp.moveaxis(part.reshape(shape[-1], *shape[:-1]), 0, -1)
    return part.reshape(shape)


def packed_scan(body: Callable, shared: Any, init: Any, params: Any, inputs: Any) -> tuple[Any, Any]:
  """The scan of body(shared, carry, params_k, inputs_k) -> (carry, outputs_k), with a gradient in reverse mode only.

  Args:
    shared: floating-point arrays that every iteration reads.
    init: the first carry, floating-point arrays.
    params: floating-point arrays, stacked on a leading axis.
    inputs: arrays of any dtype, stacked on a leading axis. Those of floating point have a gradient.

  Returns:
    The last carry, and the stacked outputs, as `jax.lax.scan` gives them.
  """
  first = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
  of_params, places = Vectors.of(first(params), outputs_first=True), jnp.arange(jax.tree.leaves(params)[0].shape[0])
  leaves, treedef = jax.tree.flatten(inputs)
  is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
  floats, others = ([leaf for leaf, each in zip(leaves, is_float) if each == kind] for kind in (True, False))

  def step(shared, carry, params, floats, others):
    floats, others = iter(floats), iter(others)
    inputs = jax.tree.unflatten(treedef, [next(floats if each else others) for each in is_float])
    return body(shared, carry, params, inputs)

  kept: Any = None  # how the forward pass keeps what the gradient needs; known once it is traced

  @jax.custom_vjp
  def run(shared, init, params, floats, others):
    vectors = jax.vmap(of_params.pack)(params)

    def iteration(carry, each):
      k, floats, others = each
      return step(shared, carry, of_params.unpack_row(vectors, k), floats, others)

    return jax.lax.scan(iteration, init, (places, floats, others))

  def forward(shared, init, params, floats, others):
    vectors = jax.vmap(of_params.pack)(params)

    def iteration(carry, each):
      nonlocal kept
      k, floats, others = each
      params = of_params.unpack_row(vectors, k)
      of_floats = lambda shared, carry, params, floats: step(shared, carry, params, floats, others)
      (carry, outputs), backward = jax.vjp(of_floats, shared, carry, params, floats)
      kept, arrays = _Kept.of(backward, (shared, params, floats, others))
      return carry, (outputs, arrays)

    carry, (outputs, arrays) = jax.lax.scan(iteration, init, (places, floats, others))
    return (carry, outputs), (shared, vectors, floats, others, arrays)

  def backward(saved, cotangents):
    shared, vectors, floats, others, arrays = saved
    of_carry, of_outputs = cotangents

    def iteration(state, each):
      of_carry, of_shared = state
      k, floats, others, of_outputs = each
      backward = kept.restored(arrays, k, (shared, of_params.unpack_row(vectors, k), floats, others))
      more_of_shared, of_carry, gradients, of_floats = backward((of_carry, of_outputs))
      return (of_carry, jax.tree.map(jnp.add, of_shared, more_of_shared)), (of_params.pack(gradients), of_floats)

    start = of_carry, jax.tree.map(jnp.zeros_like, shared)
    (of_init, of_shared), (gradients, of_floats) = jax.lax.scan(
        iteration, start, (places, floats, others, of_outputs), reverse=True)
    return of_shared, of_init, jax.vmap(of_params.unpack)(gradients), of_floats, None

  run.defvjp(forward, backward)
  return run(shared, init, params, floats, others)


@dataclasses.dataclass(frozen=True)
class _Kept:
  """The function of a gradient as arrays: those that an iteration has anyway, and vectors of all others."""
  treedef: Any
  known: tuple[int | None, ...]  # place of each leaf among the leaves that an iteration has, None for a kept one
  vectors: Vectors

  @classmethod
  def of(cls, function: Any, there: Any) -> "tuple[_Kept, dict[str, jax.Array]]":
    """That of `function` where the arrays `there` need not be kept, and the vectors to keep."""
    leaves, treedef = jax.tree.flatten(function)
    places = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(there))}
    known = tuple(places.get(id(leaf)) for leaf in leaves)
    rest = [leaf for leaf, place in zip(leaves, known) if place is None]
    vectors = Vectors.of(rest)
    return cls(treedef, known, vectors), vectors.pack(rest)

  def restored(self, matrices: dict[str, jax.Array], k: jax.Array, there: Any) -> Callable:
    """The function of iteration k, from the stacked vectors and the arrays that are `there`."""
    rest, have = iter(self.vectors.unpack_row(matrices, k)), jax.tree.leaves(there)
    return jax.tree.unflatten(self.treedef, [next(rest) if place is None else have[place] for place in self.known])
