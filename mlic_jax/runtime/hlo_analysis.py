"""Costs of a compiled program from its HLO text, with all iterations of loops.

The sums of the compiler (jax.stages.Compiled.cost_analysis) count the body of a loop once.
"""

import math
import re
from collections import Counter

HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", re.MULTILINE)
# A loop, with its length if the compiler knows it.
LOOP = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)(?:.*"known_trip_count":\{"n":"(\d+)")?')
CALLS = re.compile(r" (?:call|conditional)\(.*")
CALLED = re.compile(r"(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")  # in the condition of a loop that counts from 0, as in JAX
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
ARRAY = re.compile(r"\b(pred|bf16|[suf](\d+))\[([\d,]*)\]")


def cycles(text: str) -> int:
  """Return the cycles that the compiler for TPUs estimates for all operations in sequence; 0 without estimates."""
  parts = computations(text)
  return sum(times * sum(map(int, CYCLES.findall(parts[name]))) for name, times in runs(text).items())


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """Return {kind: (number of collectives, bytes of their results)}."""
  parts = computations(text)
  found: dict[str, tuple[int, int]] = {}
  for name, times in runs(text).items():
    for result, kind, _ in COLLECTIVE.findall(parts[name]):
      result = result.partition("), ")[2] if result.startswith("((") else result  # without the operands of a start
      count, size = found.get(kind, (0, 0))
      found[kind] = count + times, size + times * sum(map(_size, ARRAY.findall(result)))
  return found


def runs(text: str) -> Counter[str]:
  """Return how often each computation runs: the entry, bodies of loops and called computations, without fusions.

  Every branch of a condition counts. A loop of unknown length counts once."""
  parts = computations(text)
  found: Counter[str] = Counter()

  def add(name: str, times: int) -> None:
    found[name] += times
    for condition, body, known in LOOP.findall(parts[name]):
      limits = [known] if known else LIMIT.findall(parts[condition])
      add(body, times * (int(limits[0]) if len(limits) == 1 else 1))
    for call in CALLS.findall(parts[name]):
      for one, several in CALLED.findall(call):
        for each in filter(None, (one, *several.split(","))):
          add(each.strip(" %"), times)

  add(next(head[2] for head in HEAD.finditer(text) if head[1]), 1)
  return found


def computations(text: str) -> dict[str, str]:
  """Return {name: instructions, one per line}."""
  return {head[2]: text[head.end():text.index("\n}", head.end())] for head in HEAD.finditer(text)}


def _size(array: tuple[str, str, str]) -> int:
  """Return the bytes of an array such as "f32[8,128]", as matched by ARRAY."""
  kind, bits, sides = array
  return math.prod(int(side) for side in sides.split(",") if side) * (int(bits) // 8 if bits else 1 + (kind == "bf16"))
