"""The profile of `estimate`: tables of the cycles that the TPU compiler estimates."""

import argparse
import functools
from collections.abc import Callable, Sequence

from mlic_jax.atomic_io import check_output, write_whole
from mlic_jax.console import say
from mlic_jax.errors import ConfigError
from mlic_jax.runtime import hlo_profile
from mlic_jax.runtime.hlo_profile import KINDS, Instruction

LOOP = "scan: packing, sums, carry"
# (pattern of the op_name of an instruction, its part); the first match counts. A context by import path counts as LOOP.
PARTS = (
    (r"\bcontexts_local", "local context"), (r"\bcontexts_global_intra", "global intra context"),
    (r"\bcontexts_global_inter", "global inter context"), (r"\bcontexts_global_hyper", "global hyper context"),
    (r"\bcontexts_channel", "channel context"), (r"\bentropy_(non)?anchor", "entropy parameters"),
    (r"\blrp_", "LRP"), (r"\bmap_", "selection map"), (r"\bh_a\b", "h_a"), (r"\bh_s\b", "h_s"), (r"\bg_a\b", "g_a"),
    (r"\bg_s\b", "g_s"), (r"\bz_prior\b", "prior of z"), (r"\boptimizer\b", "optimizer"), (r"\bslices\b", LOOP),
    (r"\bwhile\b", LOOP))
LEFT = "everything else"
PROGRAMS = ("scan", "g_a", "g_s")  # as in training/part_programs.py
NUM_INSTRUCTIONS = 20
LONGEST = 90  # characters of a result type or a scope


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `estimate` for parts and profiles."""
  parser.add_argument("--part", choices=PROGRAMS,
                      help="Compile the gradient of one part of a training step, for one chip: h_s with the scan over "
                      "slices, g_a, or g_s with the distortion. Default: the whole step.")
  parser.add_argument("--profile", action="store_true",
                      help="Print the estimated cycles by part of the model and by kind of instruction, and the most "
                      "expensive instructions. Default: off.")
  parser.add_argument("--save-hlo", metavar="FILE",
                      help="Write the optimized HLO of the program to FILE, as text. Default: off.")


def check_arguments(args: argparse.Namespace) -> None:
  """Raises ConfigError in one line for options that exclude each other, and OSError if FILE cannot be written."""
  if args.part and (args.what != "train" or args.find_batch):
    options = f"--what={args.what}{' and --find-batch' if args.find_batch else ''}"
    raise ConfigError(f"--part={args.part} with {options}; wanted --what=train without --find-batch")
  if args.find_batch and (args.profile or args.save_hlo):
    raise ConfigError("--find-batch compiles several programs; --profile and --save-hlo are for one batch size")
  if args.save_hlo:
    if args.what in ("encode", "decode"):
      raise ConfigError(f"--what={args.what} compiles several programs; --save-hlo writes one")
    check_output(args.save_hlo)


def lowering_of_part(args: argparse.Namespace, config, codec, devices) -> Callable:
  """Returns a function without arguments that lowers the part args.part, for the images of a batch on one chip."""
  def lower():
    from mlic_jax.training import parallel, part_programs
    parallel.check_batch_size("batch_size", config.batch_size, num_devices=len(devices))
    program, arguments = part_programs.part_program(args.part, config, codec, config.batch_size // len(devices),
                                                    devices[0])
    return program.lower(*arguments)
  return lower


def report(args: argparse.Namespace, hlo: str) -> None:
  """Prints the profile of a compiled program (--profile) and writes its HLO (--save-hlo)."""
  if args.save_hlo:
    write_whole(args.save_hlo, hlo)
    say(f"  {'HLO':<15} {args.save_hlo}")
  if args.profile:
    for line in profile_lines(hlo):
      say(line)


def profile_lines(hlo: str) -> list[str]:
  """Returns the profile of a compiled program as lines: a table of cycles, and the most expensive instructions."""
  found = hlo_profile.instructions(hlo)
  if not found:
    return ["the compiler estimates no cycles for this program"]
  expensive = [f"{each.cycles / 1e6:8.3f} {each.runs:4d}  {each.kind:<20} {_short(each.result)}  "
               f"{_short(each.scopes[0] if each.scopes else '-', keep_end=True)}" for each in found[:NUM_INSTRUCTIONS]]
  return ["", *_table(found), "", "million cycles, runs, kind, result and origin of the most expensive instructions:",
          *expensive]


def _part(each: Instruction) -> str:
  return hlo_profile.part_of(each, PARTS, LEFT)


def _table(found: Sequence[Instruction]) -> list[str]:
  kinds = [kind for kind in KINDS if any(each.kind == kind for each in found)]
  rows = {part: [each for each in found if _part(each) == part] for part in hlo_profile.totals(found, _part)}
  columns: dict[str, Callable[[Instruction], bool]] = {
      "total": lambda each: True, "forward": lambda each: not each.is_backward,
      "backward": lambda each: each.is_backward, **{kind: functools.partial(_is_of, kind) for kind in kinds}}
  widths = {title: max(9, len(title)) for title in columns}
  lines = [f"{'million cycles':<27}" + " ".join(f"{title:>{width}}" for title, width in widths.items())]
  for part, chosen in {**rows, "all": list(found)}.items():
    sums = {title: sum(each.cycles for each in chosen if belongs(each)) / 1e6 for title, belongs in columns.items()}
    lines.append(f"{part:<27}" + " ".join(f"{sums[title]:>{width}.2f}" for title, width in widths.items()))
  return lines


def _is_of(kind: str, each: Instruction) -> bool:
  return each.kind == kind


def _short(text: str, keep_end: bool = False) -> str:
  if len(text) <= LONGEST:
    return text
  return "…" + text[-LONGEST + 1:] if keep_end else text[:LONGEST - 1] + "…"
