"""Where the estimated cycles of a compiled program go, instruction by instruction.

    found = instructions(compiled.as_text())
    totals(found, lambda each: each.kind)      {"products": 61_000_000, ...}, the largest first

The compiler for TPUs writes an estimate of its cycles beside each instruction. A fusion has one for all that is inside
of it, so it counts as the most expensive kind of what it contains.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mlic_jax.runtime import hlo_analysis

ASSIGNED = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)")
OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")
SCOPE = re.compile(r'op_name="([^"]*)"')
CALLED = re.compile(r"\bcalls=%?([\w.\-]+)")
# What changes where and how an array lies in memory, and no value. Pads and concatenations of TPUs are selections.
MOVES = frozenset(
    "bitcast bitcast-convert broadcast compare concatenate constant convert copy copy-done copy-start iota maximum pad "
    "get-tuple-element parameter reshape reverse select slice slice-done slice-start transpose tuple".split())
PRODUCTS = frozenset(("convolution", "dot"))
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective", "reduce-scatter")
KINDS = ("products", "copies", "dynamic-update-slice", "dynamic-slice", "reductions", "elementwise", "collectives",
         "other")


class Instruction(NamedTuple):
  """One instruction with an estimate, of all its runs."""
  name: str
  opcode: str
  result: str               # its type with layout: "f32[4,16]{1,0:T(8,128)}", or several in brackets
  scopes: tuple[str, ...]   # where in the program it comes from: its own op_name, then those of what is fused in it
  kind: str                 # one of KINDS
  runs: int                 # how often it runs, with every turn of loops
  cycles: int               # of all runs

  @property
  def is_backward(self) -> bool:
    """Whether it is of a gradient. What a gradient computes again is of it."""
    return any(mark in scope for scope in self.scopes[:1] for mark in ("transpose(", "rematted_computation"))


class _Line(NamedTuple):
  name: str
  opcode: str
  result: str
  text: str


def instructions(text: str) -> list[Instruction]:
  """Those of a compiled program, as jax.stages.Compiled.as_text gives it, that have an estimate; the costliest first.

  Loops count as often as they turn, see hlo_analysis.runs. Empty where the compiler writes no estimates."""
  lines = {name: _lines(body) for name, body in hlo_analysis.computations(text).items()}
  found = []
  for computation, runs in hlo_analysis.runs(text).items():
    for line in lines[computation]:
      if estimate := hlo_analysis.CYCLES.search(line.text):
        opcodes, scopes = _contents(line, lines)
        found.append(Instruction(line.name, line.opcode, line.result, tuple(scopes), _kind(opcodes), runs,
                                 runs * int(estimate[1])))
  return sorted(found, key=lambda each: -each.cycles)


def totals(found: Iterable[Instruction], key: Callable[[Instruction], str]) -> dict[str, int]:
  """{key of instructions: the sum of their cycles}, the largest first."""
  sums: Counter[str] = Counter()
  for each in found:
    sums[key(each)] += each.cycles
  return dict(sums.most_common())


def part_of(instruction: Instruction, parts: Sequence[tuple[str, str]], otherwise: str) -> str:
  """The part of the program that an instruction is of.

  Args:
    instruction: one that was found.
    parts: (a regular expression that is found in the scopes of a part, its name). An earlier part wins over a later
      one, and the instruction's own scope over those of what is fused in it.
    otherwise: the name of what is in no part.
  """
  for scope in instruction.scopes:
    for pattern, name in parts:
      if re.search(pattern, scope):
        return name
  return otherwise


def _lines(body: str) -> list[_Line]:
  found = []
  for line in body.splitlines():
    if match := ASSIGNED.match(line):
      result, rest = _type_and_rest(match[3])
      if opcode := OPCODE.match(rest):
        found.append(_Line(match[2], opcode[1], result, line))
  return found


def _type_and_rest(text: str) -> tuple[str, str]:
  """Of "TYPE opcode(...)": the type, which may be a tuple in nested brackets, and what follows."""
  if not text.startswith("("):
    result, _, rest = text.partition(" ")
    return result, rest
  depth = 0
  for i, character in enumerate(text):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      return text[:i + 1], text[i + 1:]
  return text, ""


def _contents(line: _Line, lines: dict[str, list[_Line]]) -> tuple[set[str], list[str]]:
  """The opcodes in a line, with those of everything that is fused in it; and the scopes, each once: that of the line,
  then those inside by how many instructions have them."""
  opcodes: set[str] = set() if line.opcode == "fusion" else {line.opcode}
  inside: Counter[str] = Counter()
  waiting = [line]
  while waiting:
    one = waiting.pop()
    called = CALLED.search(one.text)
    for inner in lines.get(called[1], []) if called else ():
      if inner.opcode == "fusion":
        waiting.append(inner)
      else:
        opcodes.add(inner.opcode)
      inside.update(SCOPE.findall(inner.text))
  own = SCOPE.findall(line.text)[:1]
  return opcodes, own + [scope for scope, _ in inside.most_common() if scope not in own]


def _kind(opcodes: set[str]) -> str:
  if opcodes & PRODUCTS:
    return "products"
  if any(opcode.startswith(COLLECTIVES) for opcode in opcodes):
    return "collectives"
  if "dynamic-update-slice" in opcodes:
    return "dynamic-update-slice"
  if opcodes & {"reduce", "reduce-window"}:
    return "reductions"
  if opcodes - MOVES == {"dynamic-slice"}:
    return "dynamic-slice"
  if not opcodes - MOVES:
    return "copies"
  if opcodes & {"custom-call", "gather", "scatter", "sort", "rng-bit-generator"}:
    return "other"
  return "elementwise"
