"""convert: convert weights of the PyTorch implementations to a model directory, or back."""
import argparse

from mlic_jax.commands.arguments import any_path, custom_modules_argument
from mlic_jax.console import say

LAYOUTS = ("compressai", "authors")
VARIANTS = ("mlic", "mlic_plus", "mlic_plus_plus", "mlic_v2")

SUMMARY = "Convert weights of the authors' code or of CompressAI to a model directory, or back."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("source", type=any_path, metavar="SOURCE",
                      help="Read a state dict of the authors' MLIC++ or of a CompressAI MLIC model: a file of "
                           "torch.save, which needs PyTorch, or an .npz file. With --to it may be a model directory. "
                           "Required.")
  parser.add_argument("target", type=any_path, metavar="TARGET",
                      help="Write or replace this model directory. With --to write this file, whose name ends in "
                           ".npz, or in .pth.tar, .pth or .pt, which needs PyTorch. Required.")
  custom_modules_argument(parser)
  parser.add_argument("--to", choices=LAYOUTS,
                      help="Write a state dict for CompressAI or for the authors' code. Default: a model directory.")
  parser.add_argument("--variant", choices=VARIANTS,
                      help="Read the state dict as one of this model. MLIC+ and MLIC++ have the same keys, so MLIC+ "
                           "has to be named. Default: the model that the keys belong to.")


def run(args: argparse.Namespace) -> None:
  from mlic_jax.coding.checkpoint_io import CheckpointError, load_model, save_model
  from mlic_jax.errors import ConfigError
  from mlic_jax.interop import reference_weights, state_dict_files, variants
  from mlic_jax.paths import is_remote, local_path
  if args.to:
    state_dict_files.check_state_dict_path(local_path(args.target))
    if not is_remote(args.source) and args.target.exists() and args.target.resolve() == args.source.resolve():
      raise CheckpointError(f"{args.target}: is also the source; wanted another file")
  elif args.target.exists() and not (args.target / "tables.npz").is_file():
    raise CheckpointError(f"{args.target}: exists and is not a model directory, so it is not replaced")
  if args.to and not args.source.is_file():
    if args.variant:
      raise ConfigError(f"--variant is for state dicts, but {args.source} is none; wanted a state dict or no --variant")
    _, config, variables, *_ = load_model(args.source, allow_custom_modules=args.allow_custom_modules)
  else:
    state_dict = state_dict_files.read_state_dict(local_path(args.source))
    config, variables = _with_path(args.source, reference_weights.from_state_dict, state_dict, args.variant)
  if args.to:
    state_dict = _with_path(args.source, reference_weights.to_state_dict, config, variables, args.to)
    state_dict_files.write_state_dict(args.target, state_dict)
  else:
    save_model(args.target, config, variables)
  say(f"{args.target}: {variants.summary(config)}")


def _with_path(path, convert, *arguments):
  """Calls convert(*arguments); a WeightsError begins with the path."""
  from mlic_jax.interop.reference_weights import WeightsError
  try:
    return convert(*arguments)
  except WeightsError as error:
    raise WeightsError(f"{path}: {error}") from error
