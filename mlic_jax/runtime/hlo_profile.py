"""Profile of the estimated cycles of a compiled program by instruction.

    found = instructions(compiled.as_text())
    totals(found, lambda each: each.kind)      {"products": 61_000_000, ...}, the largest first

The compiler for TPUs writes an estimate of the cycles of each instruction. A fusion has one estimate, and counts as the
most expensive kind of its instructions.
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
# Instructions that change the layout of an array only. Pads and concatenations of TPUs use selections.
MOVES = frozenset(
    "bitcast bitcast-convert broadcast compare concatenate constant convert copy copy-done copy-start iota maximum pad "
    "get-tuple-element parameter reshape reverse select slice slice-done slice-start transpose tuple".split())
PRODUCTS = frozenset(("convolution", "dot"))
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective", "reduce-scatter")
KINDS = ("products", "copies", "dynamic-update-slice", "dynamic-slice", "reductions", "elementwise", "collectives",
         "other")


class Instruction(NamedTuple):
  """An instruction with the estimate of all its runs."""
  name: str
  opcode: str
  result: str               # its type with layout: "f32[4,16]{1,0:T(8,128)}", or several in brackets
  scopes: tuple[str, ...]   # its op_name in the program, then those of fused instructions
  kind: str                 # one of KINDS
  runs: int                 # number of runs, with all iterations of loops
  cycles: int               # cycles of all runs

  @property
  def is_backward(self) -> bool:
    """Whether it belongs to a gradient, rematerialization included."""
    return any(mark in scope for scope in self.scopes[:1] for mark in ("transpose(", "rematted_computation"))


class _Line(NamedTuple):
  name: str
  opcode: str
  result: str
  text: str


def instructions(text: str) -> list[Instruction]:
  """Return the instructions with an estimate in the text of jax.stages.Compiled.as_text, the most expensive first.

  All iterations of loops count, see hlo_analysis.runs. Empty if the compiler writes no estimates."""
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
  """Return {key: sum of the cycles of its instructions}, the largest first."""
  sums: Counter[str] = Counter()
  for each in found:
    sums[key(each)] += each.cycles
  return dict(sums.most_common())


def part_of(instruction: Instruction, parts: Sequence[tuple[str, str]], otherwise: str) -> str:
  """Return the part of the program that an instruction belongs to.

  Args:
    instruction: an instruction of `instructions`.
    parts: pairs of a regular expression for scopes and the name of a part. Earlier parts have priority over later ones,
      and the scope of the instruction over those of fused instructions.
    otherwise: the name for instructions of no part.
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
  """Split "TYPE opcode(...)" into the type, which may be a nested tuple, and the rest."""
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
  """Return the opcodes of a line and of its fused instructions, and their unique scopes.

  The first scope is that of the line. The others are sorted by their number of instructions."""
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
