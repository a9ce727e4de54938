"""round-weights: write a copy of a model directory with rounded parameters, which compresses better."""
import argparse

from mlic_jax.commands.arguments import any_path, custom_modules_argument, positive_integer
from mlic_jax.console import say

MANTISSA = 23  # bits of float32

SUMMARY = "Copy a model with rounded parameters, which compress better; the copy does not decode files of the original."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("ckpt", type=any_path, metavar="CKPT",
                      help="Read this model directory, or the model of this training workdir. Required.")
  parser.add_argument("out", type=any_path, metavar="OUT",
                      help="Write this model directory, which must not exist yet. Required.")
  custom_modules_argument(parser)
  parser.add_argument("--mantissa-bits", type=positive_integer, default=14, metavar="N",
                      help="Keep N of the 23 bits of the mantissa of every parameter. Default: %(default)s.")


def run(args: argparse.Namespace) -> None:
  import jax

  from mlic_jax.coding.checkpoint_io import CheckpointError, find_model, load_model, save_model
  from mlic_jax.paths import files_below
  if args.mantissa_bits > MANTISSA:
    raise CheckpointError(f"--mantissa-bits {args.mantissa_bits}; wanted 1 to {MANTISSA}")
  if args.out.exists():
    raise CheckpointError(f"{args.out}: already exists; wanted a new directory")
  model = load_model(args.ckpt, allow_custom_modules=args.allow_custom_modules)
  variables = jax.tree.map(lambda values: rounded(values, args.mantissa_bits), model.variables)
  save_model(args.out, model.config, variables, model.training)
  before, after = (sum(path.stat().st_size for path in files_below(folder)) / 1e6
                   for folder in (find_model(args.ckpt), args.out))
  say(f"{args.out}: {after:.1f} MB, {before:.1f} MB before; {args.mantissa_bits} bits of mantissa per parameter")


def rounded(values, bits: int):
  """Rounds float32 values to `bits` bits of mantissa, halves to even; other arrays are returned unchanged."""
  import numpy as np
  if values.dtype != np.float32:
    return values
  fraction, exponent = np.frexp(values.astype(np.float64))
  return np.ldexp(np.rint(np.ldexp(fraction, bits + 1)), exponent - bits - 1).astype(np.float32)
