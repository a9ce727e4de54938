"""Kernel launches of a program for GPUs, by kind and with all iterations of loops, and the bytes that they access."""

import re
from collections import Counter
from typing import NamedTuple

from mlic_jax.runtime import hlo_analysis
from mlic_jax.runtime.hlo_instructions import Instruction, accessed, instructions, size

# Instructions without a launch: they name memory, control the program, or end an asynchronous operation.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "while", "call", "conditional",
        "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"}
TARGET = re.compile(r'custom_call_target="([^"]+)"')
CUDNN = re.compile(r"__cudnn\$conv(\w+)")
FUSION = re.compile(r"\bkind=k(\w+)")
TRITON = re.compile(r'"kind":"__triton')
MEMORY = "copy"


class Kernels(NamedTuple):
  """Kernel launches of a step on each GPU."""
  by_kind: dict[str, int]      # {kind: launches}, the most frequent one first
  in_loops: int                # launches inside loops
  accessed: int                # bytes that all launches read and write

  @property
  def launches(self) -> int:
    """Number of kernels, copies and library calls."""
    return sum(self.by_kind.values())

  @property
  def convolutions(self) -> dict[str, int]:
    """Number of cuDNN calls by direction, such as Forward or BackwardFilter."""
    return {found[1]: count for kind, count in self.by_kind.items() if (found := CUDNN.fullmatch(kind))}

  @classmethod
  def of(cls, text: str) -> "Kernels":
    """Count the launches in the HLO text of a compiled program."""
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
  # The result of the start of an asynchronous copy includes its operands.
  if instruction.opcode == "copy-start":
    return 2 * sum(size(result_of[name]) for name in instruction.operands)
  return accessed(instruction, result_of, parts)


def _kind(instruction: Instruction) -> str | None:
  """Return the kind of a launch; None without a launch."""
  opcode, attributes = instruction.opcode, instruction.attributes
  if opcode in FREE or opcode.endswith("-done"):
    return None
  if opcode == "custom-call":
    target = TARGET.search(attributes)
    return target[1] if target else opcode
  if opcode == "fusion-start":  # a copy of a slice in parallel with other kernels
    return MEMORY
  if opcode == "fusion":
    if TRITON.search(attributes):
      return "matrix product" if "gemm" in instruction.name + attributes else "Triton fusion"
    kind = FUSION.search(attributes)
    return f"{kind[1].lower() if kind else 'other'} fusion"
  return opcode.removesuffix("-start")
