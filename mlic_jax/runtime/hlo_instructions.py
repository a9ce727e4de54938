"""Instructions of an HLO program, with their costs: operations of matrix products, and bytes of kernels.

XLA has no cost analysis for the GPUs of a topology, so both are counted here, with all iterations of loops.
"""

import math
import re
from typing import NamedTuple

from mlic_jax.runtime import hlo_analysis

INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*?)\)(.*)$", re.MULTILINE)
OPERAND = re.compile(r"(?:^|[ (,/])%?([A-Za-z_][\w.\-]*)(?=[,) ]|$)")
ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
LABELS = re.compile(r"dim_labels=\w+_(\w+)->")
DILATION = re.compile(r"lhs_dilate=([\dx]+)")
CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
VIEWS = ("bitcast", "reshape", "copy", "convert")  # views of a parameter inside a fusion


class Instruction(NamedTuple):
  """One line of a computation."""
  name: str
  result: str                # type and shape, or a tuple of them
  opcode: str
  operands: tuple[str, ...]  # names of instructions; () for parameters and constants
  attributes: str
  is_root: bool


def instructions(body: str) -> list[Instruction]:
  """Return the instructions of a computation, given its text from `hlo_analysis.computations`."""
  return [Instruction(name, result, opcode, () if opcode in ("parameter", "constant", "iota") else
                      tuple(OPERAND.findall(re.sub(r"/\*.*?\*/", "", inside))), attributes, bool(root))
          for root, name, result, opcode, inside, attributes in INSTRUCTION.findall(body)]


def shapes(result: str) -> list[tuple[int, ...]]:
  """Return the shapes of the arrays of a result."""
  return [tuple(int(side) for side in sides.split(",") if side) for _, sides in ARRAY.findall(result)]


def size(result: str) -> int:
  """Return the bytes of the arrays of a result."""
  return sum(math.prod(shape) * _bytes(kind) for shape, (kind, _) in zip(shapes(result), ARRAY.findall(result)))


def flops(text: str) -> int:
  """The multiplications and additions of all products and convolutions of a program before optimization.

  A convolution counts its padding, but not the zeros between the elements of a dilated input."""
  parts, total = hlo_analysis.computations(text), 0
  for name, times in hlo_analysis.runs(text).items():
    found = instructions(parts[name])
    result_of = {each.name: each.result for each in found}
    total += times * sum(_flops(each, result_of) for each in found if each.opcode in ("dot", "convolution"))
  return total


def _flops(instruction: Instruction, result_of: dict[str, str]) -> int:
  (out,) = shapes(instruction.result)
  left, right = (shapes(result_of[name])[0] for name in instruction.operands)
  if instruction.opcode == "dot":
    sides = CONTRACTED.search(instruction.attributes)
    return 2 * math.prod(out) * math.prod(left[int(i)] for i in (sides[1] if sides else "").split(",") if i)
  labels, dilation = LABELS.search(instruction.attributes), DILATION.search(instruction.attributes)
  assert labels is not None  # XLA prints them for every convolution
  summed = math.prod(side for label, side in zip(labels[1], right) if label != "o")
  return 2 * math.prod(out) * summed // math.prod(int(each) for each in (dilation[1] if dilation else "1").split("x"))


def accessed(instruction: Instruction, result_of: dict[str, str], parts: dict[str, str]) -> int:
  """Return the bytes that a kernel reads and writes. If a fusion reads only slices of an array, the slices count."""
  called = CALLS.search(instruction.attributes)
  if called is None:
    return size(instruction.result) + sum(size(result_of[name]) for name in instruction.operands)
  inside = instructions(parts[called[1]])
  by_name = {each.name: each for each in inside}
  roots = [each for each in inside if each.is_root]
  roots = [by_name[name] for root in roots for name in (root.operands if root.opcode == "tuple" else (root.name,))]
  total = 0
  for root in roots:  # updates are in place
    update = _seen_through(root, by_name)
    total += size(result_of_operand(update, 1, by_name) if update.opcode == "dynamic-update-slice" else root.result)
  for parameter in inside:
    if parameter.opcode == "parameter":
      total += min(size(parameter.result), _read(parameter.name, inside))
  return total


def result_of_operand(instruction: Instruction, index: int, by_name: dict[str, Instruction]) -> str:
  """Return the type and shape of an operand."""
  return by_name[instruction.operands[index]].result


def _seen_through(instruction: Instruction, by_name: dict[str, Instruction]) -> Instruction:
  while instruction.opcode == "bitcast":
    instruction = by_name[instruction.operands[0]]
  return instruction


def _read(name: str, inside: list[Instruction]) -> int:
  """Return the bytes of one instruction of a fusion that its users read."""
  total = 0
  for user in inside:
    if name in user.operands:
      if user.opcode in ("slice", "dynamic-slice", "gather"):
        total += size(user.result) if user.operands[0] == name else 4
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        total += 0
      elif user.opcode in VIEWS and not user.is_root:
        total += _read(user.name, inside)
      else:
        return 2**62
  return total


def _bytes(kind: str) -> int:
  return 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8
