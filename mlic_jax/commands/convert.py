"""convert: weights of the PyTorch implementations to a model directory, and back."""
import argparse

from mlic_jax.commands.arguments import any_path, custom_modules_argument
from mlic_jax.console import say

LAYOUTS = ("compressai", "authors")
VARIANTS = ("mlic", "mlic_plus", "mlic_plus_plus", "mlic_v2")

SUMMARY = "Convert weights of the authors' code or of CompressAI to a model directory, or back."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("source", type=any_path, metavar="SOURCE",
                      help="Read this state dict of the authors' MLIC++ or of a CompressAI MLIC model: a file of "
                           "torch.save, which takes PyTorch, or an .npz file. With --to a model directory will do. "
                           "Required.")
  parser.add_argument("target", type=any_path, metavar="TARGET",
                      help="Write this model directory, or replace the one that is there. With --to write this file, "
                           "which ends in .npz, or in .pth.tar, .pth or .pt, which takes PyTorch. Required.")
  custom_modules_argument(parser)
  parser.add_argument("--to", choices=LAYOUTS,
                      help="Write a state dict for CompressAI or for the authors' code. Default: a model directory.")
  parser.add_argument("--variant", choices=VARIANTS,
                      help="Take the state dict for one of this model. The keys of MLIC+ are those of MLIC++, so that "
                           "MLIC+ has to be named. Default: the model that the keys belong to.")


def run(args: argparse.Namespace) -> None:
  from mlic_jax.coding.checkpoint_io import CheckpointError, load_model, save_model
  from mlic_jax.errors import ConfigError
  from mlic_jax.interop import reference_weights, state_dict_files, variants
  from mlic_jax.paths import is_remote, local_path
  if args.to:
    state_dict_files.check_state_dict_path(local_path(args.target))
    if not is_remote(args.source) and args.target.exists() and args.target.resolve() == args.source.resolve():
      raise CheckpointError(f"{args.target}: is the source; another file is wanted")
  elif args.target.exists() and not (args.target / "tables.npz").is_file():
    raise CheckpointError(f"{args.target}: exists and is not a model directory, so it is not replaced")
  if args.to and not args.source.is_file():
    if args.variant:
      raise ConfigError(f"--variant came with {args.source}, which is no state dict; a model directory needs none")
    _, config, variables, *_ = load_model(args.source, allow_custom_modules=args.allow_custom_modules)
  else:
    state_dict = state_dict_files.read_state_dict(local_path(args.source))
    config, variables = _named(args.source, reference_weights.from_state_dict, state_dict, args.variant)
  if args.to:
    state_dict = _named(args.source, reference_weights.to_state_dict, config, variables, args.to)
    state_dict_files.write_state_dict(args.target, state_dict)
  else:
    save_model(args.target, config, variables)
  say(f"{args.target}: {variants.summary(config)}")


def _named(path, convert, *arguments):
  """convert(*arguments), whose errors begin with the path."""
  from mlic_jax.interop.reference_weights import WeightsError
  try:
    return convert(*arguments)
  except WeightsError as error:
    raise WeightsError(f"{path}: {error}") from error
