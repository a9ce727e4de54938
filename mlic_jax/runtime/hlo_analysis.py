"""What the text of a compiled program says of its run, with every loop as often as it turns.

The compiler's own sums (jax.stages.Compiled.cost_analysis) count the body of a loop once, whatever its length.
"""

import math
import re
from collections import Counter

HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", re.MULTILINE)
# A loop with its length, where the compiler has found it.
LOOP = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)(?:.*"known_trip_count":\{"n":"(\d+)")?')
CALLS = re.compile(r" (?:call|conditional)\(.*")
CALLED = re.compile(r"(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")  # in the condition of a loop that counts from 0, as jax's do
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
ARRAY = re.compile(r"\b(pred|bf16|[suf](\d+))\[([\d,]*)\]")


def cycles(text: str) -> int:
  """Those that the compiler for TPUs expects its operations to take, one after the other; 0 where it says none."""
  parts = computations(text)
  return sum(times * sum(map(int, CYCLES.findall(parts[name]))) for name, times in runs(text).items())


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """{kind: (how many, bytes of their results)}."""
  parts = computations(text)
  found: dict[str, tuple[int, int]] = {}
  for name, times in runs(text).items():
    for result, kind, _ in COLLECTIVE.findall(parts[name]):
      result = result.partition("), ")[2] if result.startswith("((") else result  # without the operands of a start
      count, size = found.get(kind, (0, 0))
      found[kind] = count + times, size + times * sum(map(_size, ARRAY.findall(result)))
  return found


def runs(text: str) -> Counter[str]:
  """How often each computation runs: the entry, bodies of loops and what is called. What is fused runs inside of these.

  Of a condition, every branch counts; a loop whose length is not a constant counts once."""
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
  """{name: its instructions, a line each}."""
  return {head[2]: text[head.end():text.index("\n}", head.end())] for head in HEAD.finditer(text)}


def _size(array: tuple[str, str, str]) -> int:
  """Bytes of "f32[8,128]", as ARRAY finds it."""
  kind, bits, sides = array
  return math.prod(int(side) for side in sides.split(",") if side) * (int(bits) // 8 if bits else 1 + (kind == "bf16"))
