"""Data parallelism: one step on all devices of all processes, gradients averaged over the axis "batch".

The state is replicated (a leading axis of local devices), a batch is split: device d of process p takes block
p * local_device_count + d of the global batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from mlic_jax.errors import ConfigError

AXIS = "batch"


def check_batch_size(name: str, batch_size: int, accumulate_steps: int = 1, num_devices: int | None = None) -> None:
  """ConfigError unless a global batch divides evenly over all devices, and there over the parts of a step.

  Devices that are not here are told by num_devices."""
  num_devices = num_devices or jax.device_count()
  parts = num_devices * accumulate_steps
  if batch_size < 1 or batch_size % parts:
    accumulated = f" x accumulate_steps={accumulate_steps}" if accumulate_steps > 1 else ""
    raise ConfigError(f"{name}={batch_size} does not divide over {num_devices} devices{accumulated}; "
                      f"wanted a multiple of {parts}")


def shard(batch: np.ndarray) -> np.ndarray:
  """(local batch, ...) -> (local devices, batch per device, ...)."""
  return batch.reshape(jax.local_device_count(), -1, *batch.shape[1:])


def unshard(batch: jax.Array) -> np.ndarray:
  """The batch of this process, from what its devices computed: the way back from `shard`."""
  return np.concatenate([np.asarray(each.data).reshape(-1, *batch.shape[2:]) for each in batch.addressable_shards])


def pmap_over_batch(step: Callable, donate_state: bool = False, compiler_options: Callable[..., dict] | None = None,
                    **kwargs) -> Callable:
  """`step` pmapped over "batch"; `donate_state` lets the outputs reuse the memory of the first argument.

  compiler_options(*args) are those for such arguments; None: always those of XLA."""
  pmapped = jax.pmap(step, axis_name=AXIS, donate_argnums=(0,) if donate_state else (), **kwargs)
  return pmapped if compiler_options is None else PmappedWithOptions(pmapped, compiler_options)


class PmappedWithOptions:
  """A pmapped function that is compiled with options, which jax.pmap does not take.

  Several processes run it with XLA's own options: a program that jax.pmap has lowered takes arrays of all processes
  when it is called, and jax.pmap those of one."""

  def __init__(self, pmapped: Any, compiler_options: Callable[..., dict]):
    self._pmapped, self._options = pmapped, compiler_options
    self._programs: dict[Any, Callable] = {}

  def __call__(self, *args):
    leaves, tree = jax.tree.flatten(args)
    signature = tree, tuple((np.shape(leaf), np.result_type(leaf)) for leaf in leaves)
    if signature not in self._programs:
      options = self._options(*args) if jax.process_count() == 1 else {}
      self._programs[signature] = (
          self._pmapped.lower(*args).compile(compiler_options=options) if options else self._pmapped)
    return self._programs[signature](*args)

  def lower(self, *args) -> "LoweredWithOptions":
    """As of a jitted function, for arrays or their shapes."""
    return LoweredWithOptions(self._pmapped.lower(*args), self._options(*args))


class LoweredWithOptions(NamedTuple):
  """A lowered program, and the options that it is compiled with."""
  lowered: jax.stages.Lowered
  options: dict[str, Any]

  def compile(self) -> jax.stages.Compiled:
    """Compiled with its options."""
    return self.lowered.compile(compiler_options=self.options)

  def as_text(self) -> str:
    """The program before it is compiled."""
    return self.lowered.as_text()


def mean_over_devices(tree: Any) -> Any:
  """The mean of a tree over "batch", for use inside a step; on one device the tree itself, not a copy of it."""
  return tree if jax.lax.psum(1, AXIS) == 1 else _reduce(jax.lax.pmean, tree)


def sum_over_devices(tree: Any) -> Any:
  """The sum of a tree over "batch", for use inside a step."""
  return _reduce(jax.lax.psum, tree)


def _reduce(reduce: Callable, tree: Any) -> Any:
  """On CPU a single reduction of all leaves, to be the only one of its step.

  A function of several reductions that comes from the compilation cache does them in any order on CPU (XLA gives each
  a resource of its own there), and two processes that begin with different ones abort. Elsewhere XLA keeps the order,
  and begins to reduce before the last gradient is there."""
  def at_once(tree):
    flat, unflatten = ravel_pytree(tree)
    return unflatten(reduce(flat, AXIS))

  return jax.lax.platform_dependent(tree, cpu=at_once, default=lambda tree: reduce(tree, AXIS))


def replicate(tree: Any) -> Any:
  """A copy of every array of `tree` on each local device.

  Over the same axis as the steps: newer jax counts its name to the sharding, and what is given back by one step would
  otherwise make the next one compile a second time."""
  copy = jax.pmap(lambda tree, _: tree, axis_name=AXIS, in_axes=(None, 0))
  return copy(tree, np.zeros(jax.local_device_count(), np.int8))


def unreplicate(tree: Any) -> Any:
  """The arrays of the first local device, as NumPy arrays that own their memory.

  They are copies, since on CPU a view would change under its reader when the next step reuses donated memory."""
  return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).reshape(x.shape[1:]), tree)
