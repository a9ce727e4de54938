"""shrink: a smaller copy of a model directory, for handing out."""
import argparse

from mlic_jax.commands.arguments import anywhere, positive
from mlic_jax.console import say

MANTISSA = 23  # bits that float32 stores


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("ckpt", type=anywhere, metavar="CKPT", help="model directory, or the workdir of a training run")
  parser.add_argument("out", type=anywhere, metavar="OUT", help="model directory to write; nothing may be there yet")
  parser.add_argument("--mantissa-bits", type=positive, default=14, metavar="N",
                      help="bits of the mantissa that every parameter keeps, of 23; default: %(default)s")


def run(args: argparse.Namespace) -> None:
  """copy a model with its parameters rounded, which compress better; files of one do not decode with the other"""
  import jax

  from mlic_jax.coding.checkpoint_io import CheckpointError, find_model, load_model, save_model
  from mlic_jax.paths import files_below
  if args.mantissa_bits > MANTISSA:
    raise CheckpointError(f"--mantissa-bits {args.mantissa_bits}: 1 to {MANTISSA} are wanted")
  if args.out.exists():
    raise CheckpointError(f"{args.out}: exists; a new directory is wanted")
  model = load_model(args.ckpt)
  variables = jax.tree.map(lambda values: rounded(values, args.mantissa_bits), model.variables)
  save_model(args.out, model.config, variables, model.training)
  before, after = (sum(path.stat().st_size for path in files_below(folder)) / 1e6
                   for folder in (find_model(args.ckpt), args.out))
  say(f"{args.out}: {after:.1f} MB, {before:.1f} MB before; parameters with {args.mantissa_bits} bits of mantissa")


def rounded(values, bits: int):
  """float32 values, each the nearest that has so many bits of mantissa, halves to even; other arrays as they are."""
  import numpy as np
  if values.dtype != np.float32:
    return values
  fraction, exponent = np.frexp(values.astype(np.float64))
  return np.ldexp(np.rint(np.ldexp(fraction, bits + 1)), exponent - bits - 1).astype(np.float32)
