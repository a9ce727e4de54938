"""A function compiled as a chain of programs, for CPU.

XLA for CPU compiles a kernel for each operation, and kernels that occur several times are compiled several times. Here
the calls of functions marked by `own_program` are programs of their own. Calls of one function with the same shapes
share a program, also in a gradient. What is computed between the calls is compiled into other programs. Different
programs compile in parallel, while the rest is lowered. The results differ from those of one program by rounding only.

    chained = chain(function)            # function may call own_program(part) several times
    chained(*args)                       # runs the programs one after another
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from mlic_jax.runtime import compilation_cache, startup
from mlic_jax.runtime.program_split import MARK, Call, Plan, size, split


def own_program(function: Callable) -> Callable:
  """Returns the jitted function. Its calls are programs of their own in a `chain`, unless they are in a loop."""
  def marked(*args):
    return function(*args)
  marked.__name__ = MARK + getattr(function, "__name__", "part")
  return jax.jit(marked)


def chain(function: Callable, axis_name: str, donate_state: bool = False, in_axes: Sequence[int | None] = (),
          compiler_options: Callable[..., dict] | None = None) -> "ChainedFunction":
  """Returns the function as a chain of programs on the first CPU device, with the interface of a jitted function.

  Args:
    function: a function of positional arguments, for one device of jax.pmap.
    axis_name: the axis of jax.pmap, whose size is 1.
    donate_state: whether the results may reuse the memory of the first argument.
    in_axes: as in jax.pmap, 0 or None for each argument. Arguments have a leading axis of one device, and so have the
      results.
    compiler_options: a function of the arguments; None means the defaults of XLA.
  """
  return ChainedFunction(function, axis_name, donate_state, tuple(in_axes), compiler_options)


@dataclasses.dataclass
class ChainedFunction:
  """The result of `chain`."""
  function: Callable
  axis_name: str
  donate_state: bool
  in_axes: tuple[int | None, ...]
  compiler_options: Callable[..., dict] | None
  programs: dict[Any, "Chain"] = dataclasses.field(default_factory=dict)

  def __call__(self, *args):
    leaves, tree = jax.tree.flatten(args)
    signature = tree, tuple((np.shape(leaf), np.result_type(leaf)) for leaf in leaves)
    if signature not in self.programs:
      self.programs[signature] = self.lower(*args).compile()
    return self.programs[signature](*args)

  def lower(self, *args) -> "LoweredChain":
    """Traces the function for arrays or shapes, splits it and lowers its programs. They begin to compile."""
    axes = self.in_axes or (0,) * len(args)

    def with_device_axis(*args):
      of_device = [arg if axis is None else jax.tree.map(lambda leaf: jax.lax.squeeze(leaf, (0,)), arg)
                   for arg, axis in zip(args, axes)]
      return jax.tree.map(lambda leaf: jax.lax.expand_dims(leaf, (0,)), self.function(*of_device))

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        np.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)), args)
    with startup.no_garbage_collection():
      traced: Any = jax.make_jaxpr(with_device_axis, axis_env=[(self.axis_name, 1)], return_shape=True)(*shapes)
      closed, out_shapes = traced
      donated = set(range(len(jax.tree.leaves(args[0])))) if self.donate_state else set()
      plan = split(closed, donated)
      options = self.compiler_options(*args) if self.compiler_options else {}
      name = getattr(self.function, "__name__", "program")
      return LoweredChain(name, plan, jax.tree.structure(shapes), out_shapes, options)


class LoweredChain:
  """The lowered programs of a chain. They begin to compile as soon as they are lowered."""

  def __init__(self, name: str, plan: Plan, in_tree: Any, out_shapes: Any, options: dict[str, Any]):
    self.out_info, self.out_tree = out_shapes, jax.tree.structure(out_shapes)
    self._plan, self._in_tree = plan, in_tree
    self._pool = ThreadPoolExecutor(_num_cores(), "mlic-jax-compile")
    self._lowered: dict[int, jax.stages.Lowered] = {}
    self._compiled: dict[int, Future] = {}
    # The largest programs first: the smaller ones then fill the time of the cores at the end.
    for i in sorted(range(len(plan.programs)), key=lambda i: -size(plan.programs[i].jaxpr)):
      closed = plan.programs[i]
      shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
      self._lowered[i] = jax.jit(_named(closed, f"{name}_{i}"), donate_argnums=plan.donated[i]).lower(*shapes)
      self._compiled[i] = self._pool.submit(_compile, self._lowered[i], options)

  def as_text(self) -> str:
    """Returns the text of all programs, and how they are called."""
    plan = self._plan
    texts = [each.as_text() for _, each in sorted(self._lowered.items())]
    return "\n".join([*texts, repr((plan.calls, plan.results, plan.donated))])

  def cancel(self) -> None:
    """Drops the programs that are not being compiled yet."""
    self._pool.shutdown(wait=False, cancel_futures=True)

  def compile(self) -> "Chain":
    """Waits for the compiled programs."""
    try:
      found = [each.result() for _, each in sorted(self._compiled.items())]
    finally:
      self.cancel()
    programs, cached = zip(*found)
    plan = self._plan
    return Chain(list(programs), plan.calls, plan.constants, plan.results, self._in_tree, self.out_tree, any(cached))


@dataclasses.dataclass
class Chain:
  """A compiled chain. It can be pickled if its programs can be serialized."""
  programs: list[Any]
  calls: list[Call]
  constants: dict[int, Any]
  results: list[int]
  in_tree: Any
  out_tree: Any
  has_cached_programs: bool   # whether JAX loaded some of them from its cache

  def __call__(self, *args):
    leaves, tree = jax.tree.flatten(args)
    if tree != self.in_tree:
      raise TypeError(f"the program got arguments of the structure {tree}; wanted {self.in_tree}")
    values: dict[int, Any] = dict(enumerate(map(_on_one_device, leaves))) | self.constants
    last: list[Any] = []
    for call in self.calls:
      results = self.programs[call.program](*[values[slot] for slot in call.inputs])
      # Freeing an array waits for the programs that read it, so the next program is dispatched before.
      last = [values.pop(slot) for slot in call.last]
      values.update(zip(call.outputs, results))
    del leaves, last
    return jax.tree.unflatten(self.out_tree, [values[slot] for slot in self.results])

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | dict(programs=[serialize_executable.serialize(each) for each in self.programs])

  def __setstate__(self, state: dict[str, Any]) -> None:
    programs = [serialize_executable.deserialize_and_load(*each) for each in state["programs"]]
    self.__dict__.update(state, programs=programs)


def _on_one_device(leaf: Any) -> Any:
  """Returns an argument as programs of one device take it; arrays of jax.pmap have another sharding."""
  if isinstance(leaf, jax.Array) and not isinstance(leaf.sharding, jax.sharding.SingleDeviceSharding):
    # XLA owns this array. The memory of a view in NumPy would be freed while a program that may reuse it runs.
    return leaf.addressable_shards[0].data
  return leaf


def _compile(lowered: jax.stages.Lowered, options: dict[str, Any]) -> tuple[Any, bool]:
  """Returns a compiled program, and whether JAX loaded it from its cache."""
  before = compilation_cache.num_hits()
  program = lowered.compile(compiler_options=options)
  return program, compilation_cache.num_hits() > before


def _named(closed: ClosedJaxpr, name: str) -> Callable:
  """Returns the function of a program, with a name that profiles show."""
  run = jaxpr_as_fun(closed)
  def program(*args):
    return run(*args)
  marked = [eqn.params["name"].removeprefix(MARK) for eqn in closed.jaxpr.eqns
            if str(eqn.params.get("name", "")).startswith(MARK)]
  program.__name__ = "_".join([name, *marked])
  return program


def _num_cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
