"""Data parallelism: a step runs on all devices of all processes and averages gradients over the axis "batch".

The state is replicated, with a leading axis of local devices. The batch is split: device d of process p gets block
p * local_device_count + d of the global batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from mlic_jax.errors import ConfigError

AXIS = "batch"


def check_batch_size(name: str, batch_size: int, accumulate_steps: int = 1, num_devices: int | None = None) -> None:
  """Raises ConfigError unless a global batch divides evenly over all devices and over accumulate_steps.

  num_devices: the number of devices; None for those of this run."""
  num_devices = num_devices or jax.device_count()
  parts = num_devices * accumulate_steps
  if batch_size < 1 or batch_size % parts:
    accumulated = f" x accumulate_steps={accumulate_steps}" if accumulate_steps > 1 else ""
    raise ConfigError(f"{name}={batch_size} does not divide over {num_devices} devices{accumulated}; "
                      f"wanted a multiple of {parts}")


def shard(batch: np.ndarray) -> np.ndarray:
  """Splits a batch over the local devices: (local batch, ...) to (local devices, batch per device, ...)."""
  return batch.reshape(jax.local_device_count(), -1, *batch.shape[1:])


def unshard(batch: jax.Array) -> np.ndarray:
  """Joins the results of the local devices to the batch of this process: the inverse of `shard`."""
  return np.concatenate([np.asarray(each.data).reshape(-1, *batch.shape[2:]) for each in batch.addressable_shards])


def pmap_over_batch(step: Callable, donate_state: bool = False, compiler_options: Callable[..., dict] | None = None,
                    **kwargs) -> Callable:
  """Applies jax.pmap over "batch"; `donate_state` lets the outputs reuse the memory of the first argument.

  compiler_options(*args) returns the compiler options for these arguments; None: the defaults of XLA."""
  pmapped = jax.pmap(step, axis_name=AXIS, donate_argnums=(0,) if donate_state else (), **kwargs)
  return pmapped if compiler_options is None else PmappedWithOptions(pmapped, compiler_options)


class PmappedWithOptions:
  """A pmapped function with compiler options, which jax.pmap does not support.

  With several processes it uses the default options: a program lowered by jax.pmap takes the arrays of all processes,
  but jax.pmap takes those of one process."""

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

  def trace(self, *args) -> jax.stages.Traced:
    """Traces the function for arrays or shapes, like `trace` of a jitted function; without the options."""
    return self._pmapped.trace(*args)

  def lower(self, *args) -> "LoweredWithOptions":
    """Lowers the function for arrays or shapes, like `lower` of a jitted function."""
    return LoweredWithOptions(self._pmapped.lower(*args), self._options(*args))


class LoweredWithOptions(NamedTuple):
  """A lowered program with its compiler options."""
  lowered: jax.stages.Lowered
  options: dict[str, Any]

  def compile(self) -> jax.stages.Compiled:
    """Compiles the program with its options."""
    return self.lowered.compile(compiler_options=self.options)

  def __getattr__(self, name: str) -> Any:
    """Returns any other attribute of the lowered program, such as its text."""
    return getattr(self.lowered, name)


def device_index() -> jax.Array | int:
  """Returns the index of this device in "batch" inside a step; 0 on a single device."""
  return 0 if jax.lax.psum(1, AXIS) == 1 else jax.lax.axis_index(AXIS)


def mean_over_devices(tree: Any) -> Any:
  """Averages a tree over "batch" inside a step; on a single device it returns the tree itself, not a copy."""
  return tree if jax.lax.psum(1, AXIS) == 1 else _reduce(jax.lax.pmean, tree)


def sum_over_devices(tree: Any) -> Any:
  """Sums a tree over "batch" inside a step."""
  return _reduce(jax.lax.psum, tree)


def _reduce(reduce: Callable, tree: Any) -> Any:
  """Reduces a tree. On CPU a single reduction has all leaves, and it has to be the only one of the step.

  On CPU a program from the compilation cache runs several reductions in any order, because XLA gives each a resource of
  its own, and two processes that begin with different ones abort. Elsewhere XLA preserves the order, and separate
  reductions start before the last gradient is computed."""
  def in_one_reduction(tree):
    flat, unflatten = ravel_pytree(tree)
    return unflatten(reduce(flat, AXIS))

  return jax.lax.platform_dependent(tree, cpu=in_one_reduction, default=lambda tree: reduce(tree, AXIS))


def replicate(tree: Any) -> Any:
  """Copies every array of `tree` to each local device.

  The axis has the name of the steps' axis: in newer JAX it belongs to the sharding, and another name would make the
  second step compile again."""
  return _copies()(tree, np.zeros(jax.local_device_count(), np.int8))


@functools.cache
def _copies() -> Callable:
  """Returns the one function whose programs all trees of the same shapes share."""
  return jax.pmap(lambda tree, _: tree, axis_name=AXIS, in_axes=(None, 0))


def unreplicate(tree: Any) -> Any:
  """Returns the arrays of the first local device as NumPy arrays that own their memory.

  On CPU a view would change when the next step reuses donated memory."""
  return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).reshape(x.shape[1:]), tree)
