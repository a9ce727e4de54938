"""Splits a traced function into the programs of a chain (program_chain.py)."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

MARK = "own_program_"  # begins the names of jitted functions whose calls are programs of their own
# Operations that may only name their argument anew. Each program does those that it needs, so nothing is copied.
VIEWS = ("squeeze", "reshape", "broadcast_in_dim")


@dataclasses.dataclass
class Call:
  """A call of a program. Values are in numbered slots."""
  program: int
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  last: tuple[int, ...]    # inputs that no later call reads


@dataclasses.dataclass
class Plan:
  """The calls of a chain, in their order. The first slots have the arguments of the function."""
  calls: list[Call]
  constants: dict[int, Any]       # slot -> value
  results: list[int]              # slots of the results
  programs: list[ClosedJaxpr]
  donated: list[tuple[int, ...]]  # of each program, the arguments whose memory its results reuse


@dataclasses.dataclass
class Segment:
  """The equations of one call of a program, and the variables that it reads and writes."""
  eqns: list[JaxprEqn]
  key: Any = None          # equal for calls that share a program; None if no other call does the same
  inputs: list[Var] = dataclasses.field(default_factory=list)
  outputs: list[Any] = dataclasses.field(default_factory=list)


def split(traced: ClosedJaxpr, donated: set[int]) -> Plan:
  """Splits a traced function into the calls of own programs and programs of the equations between them.

  Every equation gets a stage, the number of own programs on the longest path to it. The equations of one stage are a
  program that runs before the own programs of this stage. `donated` are the arguments whose memory results may reuse.
  """
  jaxpr = traced.jaxpr
  segments, views = _segments(jaxpr)
  _connect(jaxpr, segments, views)
  segments = [segment for segment in segments if segment.outputs]
  slots: dict[Any, int] = {var: i for i, var in enumerate(jaxpr.invars)}
  slot_of = lambda key: slots.setdefault(key, len(slots))
  constants = {slot_of(var): np.asarray(value) for var, value in zip(jaxpr.constvars, traced.consts)}
  results = [slot_of(("constant", i) if isinstance(out, Literal) else out) for i, out in enumerate(jaxpr.outvars)]
  constants.update({slot: np.asarray(out.val) for slot, out in zip(results, jaxpr.outvars) if isinstance(out, Literal)})

  last_reader = {var: i for i, segment in enumerate(segments) for var in segment.inputs}
  kept = {*_variables(jaxpr.outvars), *jaxpr.constvars}
  # Memory that belongs to the chain: results of its programs, and donated arguments.
  owned = {jaxpr.invars[i] for i in donated}.union(var for segment in segments for var in segment.outputs)
  calls: list[Call] = []
  numbers: dict[Any, int] = {}
  programs: list[ClosedJaxpr] = []
  reusable: list[set[int]] = []
  for i, segment in enumerate(segments):
    last = {j for j, var in enumerate(segment.inputs) if last_reader[var] == i and var not in kept}
    key = i if segment.key is None else segment.key
    if key not in numbers:
      numbers[key] = len(programs)
      programs.append(ClosedJaxpr(Jaxpr((), segment.inputs, segment.outputs, segment.eqns), ()))
      reusable.append(last)
    # An argument that one call reads for the last time, but another call does not, stays.
    reusable[numbers[key]] &= {j for j in last if segment.inputs[j] in owned}
    calls.append(Call(numbers[key], tuple(map(slot_of, segment.inputs)), tuple(map(slot_of, segment.outputs)),
                      tuple(slots[segment.inputs[j]] for j in sorted(last))))
  return Plan(calls, constants, results, programs, [_donations(*each) for each in zip(programs, reusable)])


def size(jaxpr: Jaxpr) -> int:
  """Returns the number of equations, with those inside of others."""
  inner = [param for eqn in jaxpr.eqns for param in eqn.params.values() if hasattr(param, "eqns")]
  return len(jaxpr.eqns) + sum(size(getattr(each, "jaxpr", each)) for each in inner)


def _segments(jaxpr: Jaxpr) -> tuple[list[Segment], dict[Any, JaxprEqn]]:
  """Returns the equations by segment, and the views, each by its result."""
  stages: dict[Any, int] = defaultdict(int)
  between: dict[int, list[JaxprEqn]] = defaultdict(list)
  own: dict[int, list[Segment]] = defaultdict(list)
  views: dict[Any, JaxprEqn] = {}
  for eqn in _needed(jaxpr):
    stage = max((stages[var] for var in _variables(eqn.invars)), default=0)
    is_own = eqn.primitive.name in ("pjit", "jit") and eqn.params["name"].startswith(MARK)
    if is_own:
      own[stage].append(Segment([eqn], id(eqn.params["jaxpr"])))  # JAX traces calls with the same shapes once
    elif _is_view(eqn):
      views[eqn.outvars[0]] = eqn
    else:
      between[stage].append(eqn)
    stages.update(dict.fromkeys(eqn.outvars, stage + is_own))
  segments = []
  for stage in sorted({*between, *own}):
    segments += [Segment(between[stage]), *own[stage]]
  return segments, views


def _connect(jaxpr: Jaxpr, segments: list[Segment], views: dict[Any, JaxprEqn]) -> None:
  """Finds what each segment reads and writes, and adds the views of both to its equations."""
  def path(var: Any) -> list[JaxprEqn]:
    """Returns the views that lead to a variable."""
    return [*path(views[var].invars[0]), views[var]] if var in views else []

  def root(var: Any) -> Var:
    """Returns what a variable is a view of."""
    return root(views[var].invars[0]) if var in views else var

  wanted = list(dict.fromkeys(_variables(jaxpr.outvars)))
  arguments = {*jaxpr.invars, *jaxpr.constvars}
  of_arguments = Segment([], outputs=[var for var in wanted if var in views and root(var) in arguments])
  for segment in reversed(segments):  # from the last one, because a segment writes what later ones read
    written = {var: i for i, var in enumerate(var for eqn in segment.eqns for var in eqn.outvars)}
    # In the order in which they are written, which is the same for calls of one program.
    segment.outputs = sorted((var for var in wanted if root(var) in written),
                             key=lambda var: (written[root(var)], len(path(var))))
    read = [var for eqn in segment.eqns for var in _variables(eqn.invars)]
    segment.inputs = list(dict.fromkeys(root(var) for var in read if root(var) not in written))
    segment.eqns = _in_order([*segment.eqns, *(eqn for var in (*read, *segment.outputs) for eqn in path(var))])
    if segment.key is not None:
      segment.key = segment.key, _pattern(segment)
    wanted = list(dict.fromkeys([*(var for var in wanted if root(var) not in written), *segment.inputs]))
  of_arguments.inputs = list(dict.fromkeys(map(root, of_arguments.outputs)))
  of_arguments.eqns = _in_order([eqn for var in of_arguments.outputs for eqn in path(var)])
  segments.append(of_arguments)


def _variables(atoms: Sequence[Any]) -> list[Var]:
  """Returns the operands that are not literals."""
  return [atom for atom in atoms if isinstance(atom, Var)]


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
  """Returns the equations that the results need."""
  needed, found = set(_variables(jaxpr.outvars)), []
  for eqn in reversed(jaxpr.eqns):
    if eqn.effects or any(var in needed for var in eqn.outvars):
      found.append(eqn)
      needed.update(_variables(eqn.invars))
  return found[::-1]


def _is_view(eqn: JaxprEqn) -> bool:
  """Whether an equation keeps the elements of its only argument and their order."""
  if eqn.primitive.name not in VIEWS or len(eqn.invars) != 1 or isinstance(eqn.invars[0], Literal):
    return False
  before, after = (np.prod(var.aval.shape) for var in (*eqn.invars, *eqn.outvars))  # type: ignore[attr-defined]
  return bool(before == after)


def _in_order(eqns: list[JaxprEqn]) -> list[JaxprEqn]:
  """Returns equations, each once, in an order in which every variable is written before it is read."""
  writer = {var: eqn for eqn in eqns for var in eqn.outvars}
  found: dict[int, JaxprEqn] = {}

  def add(eqn: JaxprEqn) -> None:
    if id(eqn) not in found:
      for var in _variables(eqn.invars):
        if var in writer:
          add(writer[var])
      found[id(eqn)] = eqn

  for eqn in eqns:
    add(eqn)
  return list(found.values())


def _pattern(segment: Segment) -> str:
  """Returns what a segment does around its call, with numbers in place of variables."""
  numbers: dict[Any, int] = {}

  def name(atom: Any) -> tuple:
    what = atom.val if isinstance(atom, Literal) else numbers.setdefault(atom, len(numbers))
    return type(atom).__name__, what, str(atom.aval)

  inputs = list(map(name, segment.inputs))
  eqns = [(eqn.primitive.name, eqn.params if _is_view(eqn) else "", list(map(name, eqn.invars)),
           list(map(name, eqn.outvars))) for eqn in segment.eqns]
  return repr((inputs, eqns, list(map(name, segment.outputs))))


def _donations(program: ClosedJaxpr, reusable: set[int]) -> tuple[int, ...]:
  """Returns the reusable arguments for which there is a result of the same shape. XLA warns of others."""
  kind: Callable[[Any], tuple] = lambda aval: (aval.shape, aval.dtype)
  free, found = Counter(map(kind, program.out_avals)), []
  for i in sorted(reusable):
    if free[kind(program.in_avals[i])]:
      free[kind(program.in_avals[i])] -= 1
      found.append(i)
  return tuple(found)
