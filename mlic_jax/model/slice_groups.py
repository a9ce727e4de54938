"""Groups of consecutive slices, which the scan over the slices runs one after another.

A group of one slice is compiled for this slice: k is known while tracing, and only the channels of decoded slices are
multiplied. A larger group is a loop that is compiled once, for the channels that its last slice reads. Many groups
multiply less, few groups compile faster. With own programs (runtime/program_chain.py) the slices of a group are calls
of one program in place of a loop, whose state would be copied.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mlic_jax.kernels.packed_scan import packed_scan
from mlic_jax.model.checkerboard import pack_parities, unpack_parities
from mlic_jax.model.packed_hyper import PackedHyper
from mlic_jax.model.quantizers import Quantizer
from mlic_jax.runtime.program_chain import own_program

MIN_SLICES_IN_LOOPS = 6  # on CPU; fewer slices compile in less than a minute anyway


def choose_groups(platform: str | None, num_slices: int) -> tuple[int, ...]:
  """Return the sizes of the groups for gradients on a platform, such as "cpu". None is any platform but CPU."""
  if platform != "cpu":
    # On TPUs two loops take more cycles than one: XLA copies the parameters of each, and arrays for their gradients.
    return (num_slices,)
  # XLA takes longer for each kernel on CPU the more there are, and a slice on its own has kernels of its own.
  if num_slices < MIN_SLICES_IN_LOOPS:
    return (1,) * num_slices
  pairs = num_slices // 3  # of the last slices, which read nearly the same channels
  return (1,) * (num_slices - 2 * pairs) + (2,) * pairs


@dataclasses.dataclass(frozen=True)
class GroupedScan:
  """The scan over the slices, in groups of given sizes.

  Attributes:
    step: the SliceStep.
    hyper: (B, h, w, 2M) from h_s.
    quantizer: stands for rounding.
    remat: rematerialize every step in the gradient.
    unroll: slices per iteration of a loop.
    packed, for_tpu, own_programs: as in MLIC.
  """
  step: Any
  hyper: jax.Array
  quantizer: Quantizer
  remat: bool = False
  unroll: int = 1
  packed: bool = False
  for_tpu: bool = False
  own_programs: bool = False

  def __call__(self, sizes: tuple[int, ...], y_hat: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
    """Run the steps of all slices, given y_hat (B, h, w, M) of zeros.

    `inputs` are parameters, indices, y, draws and `arrived` of the slices, stacked. Returns y_hat and the second
    results of SliceStep, stacked."""
    hyper: Any = self.hyper
    if self.for_tpu:  # packs the arrays of all slices at once
      params, k, y, draws, arrived = inputs
      hyper, inputs = PackedHyper.of(hyper), (params, k, pack_parities(y), pack_parities(draws), arrived)
    start, of_groups = 0, []
    for size, of_group in zip(sizes, split_groups(inputs, sizes)):
      run = self._calls if self.own_programs else self._single_slice if size == 1 else self._loop
      y_hat, of_slices = run(range(start, start + size), hyper, y_hat, of_group)
      of_groups.append(of_slices)
      start += size
    found = jax.tree.map(lambda *each: jnp.concatenate(each), *of_groups)
    return y_hat, unpack_parities(found) if self.for_tpu else found

  def _single_slice(self, group: range, hyper, y_hat, inputs) -> tuple[jax.Array, Any]:
    def body(y_hat, inputs):
      params, _, *others = jax.tree.map(lambda leaf: jax.lax.squeeze(leaf, (0,)), inputs)
      return self._apply(self.step, hyper, y_hat, (params, group[0], *others))

    y_hat, found = self._checkpoint(body)(y_hat, inputs)
    return y_hat, jax.tree.map(lambda leaf: leaf[None], found)

  def _calls(self, group: range, hyper, y_hat, inputs) -> tuple[jax.Array, Any]:
    """Run every slice of a group as a call of the same function."""
    step = self.step if len(group) == 1 else self.step.clone(group=group)

    def run_slice(hyper, y_hat, params, k, *others):
      k = group[0] if len(group) == 1 else k
      return self._checkpoint(partial(self._apply, step))(hyper, y_hat, (params, k, *others))

    run_slice, of_slices = own_program(run_slice), []
    for of_slice in split_groups(inputs, (1,) * len(group)):
      y_hat, found = run_slice(hyper, y_hat, *jax.tree.map(lambda leaf: jax.lax.squeeze(leaf, (0,)), of_slice))
      of_slices.append(found)
    return y_hat, jax.tree.map(lambda *each: jnp.stack(each), *of_slices)

  def _loop(self, group: range, hyper, y_hat, inputs) -> tuple[jax.Array, Any]:
    whole = len(group) == self.step.config.num_slices
    step = self.step if whole else self.step.clone(group=group)
    if self.packed:
      params, *others = inputs
      each = lambda hyper, y_hat, params, others: self._apply(step, hyper, y_hat, (params, *others))
      return packed_scan(self._checkpoint(each), hyper, y_hat, params, others)
    return jax.lax.scan(self._checkpoint(partial(self._apply, step, hyper)), y_hat, inputs, unroll=self.unroll)

  def _apply(self, step, hyper, y_hat, inputs) -> tuple[jax.Array, Any]:
    params, k, y, draws, arrived = inputs
    return step.apply({"params": params}, k, hyper, y_hat, y, self.quantizer, draws, arrived,
                      method="passes" if self.for_tpu else "__call__")

  def _checkpoint(self, body):
    return jax.checkpoint(body) if self.remat else body


def split_groups(stacked: Any, sizes: tuple[int, ...]) -> list[Any]:
  """Split a tree of arrays along their first axis, the slice, into trees of the given sizes.

  The gradient of jax.lax.split is one concatenation. That of indexing is a sum of arrays of mostly zeros."""
  if len(sizes) == 1:
    return [stacked]
  leaves, tree = jax.tree.flatten(stacked)
  parts = [jax.lax.split(leaf, sizes) for leaf in leaves]
  return [jax.tree.unflatten(tree, [part[i] for part in parts]) for i in range(len(sizes))]
