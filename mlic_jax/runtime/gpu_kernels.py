"""What a GPU launches to run a program that XLA has compiled for it: kernels by kind, with every loop as often as it
turns, and the bytes that they move."""

import re
from collections import Counter
from typing import NamedTuple

from mlic_jax.runtime import hlo_analysis
from mlic_jax.runtime.hlo_instructions import Instruction, accessed, instructions, size

# These launch nothing: they name memory, steer, or end what another operation has started.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "while", "call", "conditional",
        "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"}
TARGET = re.compile(r'custom_call_target="([^"]+)"')
CUDNN = re.compile(r"__cudnn\$conv(\w+)")
FUSION = re.compile(r"\bkind=k(\w+)")
TRITON = re.compile(r'"kind":"__triton')
MEMORY = "copy"


class Kernels(NamedTuple):
  """What a step launches on each GPU."""
  by_kind: dict[str, int]      # kind: launches, the most frequent one first
  in_loops: int                # of all launches those inside of loops
  accessed: int                # bytes that all of them read and write

  @property
  def launches(self) -> int:
    """Kernels, copies and calls of libraries."""
    return sum(self.by_kind.values())

  @property
  def convolutions(self) -> dict[str, int]:
    """Calls of cuDNN by their direction, such as Forward or BackwardFilter."""
    return {found[1]: count for kind, count in self.by_kind.items() if (found := CUDNN.fullmatch(kind))}

  @classmethod
  def of(cls, text: str) -> "Kernels":
    """Those of the text of a compiled program."""
    parts, runs = hlo_analysis.computations(text), hlo_analysis.runs(text)
    kinds: Counter[str] = Counter()
    in_loops = moved = 0
    for name, times in runs.items():
      found = instructions(parts[name])
      result_of = {each.name: each.result for each in found}
      for each in found:
        if (kind := _kind(each)) is not None:
          kinds[kind] += times
          in_loops += times * (times > 1)
          moved += times * _accessed(each, result_of, parts)
    return cls(dict(kinds.most_common()), in_loops, moved)


def _accessed(instruction: Instruction, result_of: dict[str, str], parts: dict[str, str]) -> int:
  # What starts an asynchronous copy names its operands in its result.
  if instruction.opcode == "copy-start":
    return 2 * sum(size(result_of[name]) for name in instruction.operands)
  return accessed(instruction, result_of, parts)


def _kind(instruction: Instruction) -> str | None:
  """A word or two for what is launched; None for nothing."""
  opcode, attributes = instruction.opcode, instruction.attributes
  if opcode in FREE or opcode.endswith("-done"):
    return None
  if opcode == "custom-call":
    target = TARGET.search(attributes)
    return target[1] if target else opcode
  if opcode == "fusion-start":  # a slice that is copied beside other kernels
    return MEMORY
  if opcode == "fusion":
    if TRITON.search(attributes):
      return "matrix product" if "gemm" in instruction.name + attributes else "Triton fusion"
    kind = FUSION.search(attributes)
    return f"{kind[1].lower() if kind else 'other'} fusion"
  return opcode.removesuffix("-start")
