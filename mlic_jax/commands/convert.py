"""convert: make a model directory from the authors' weights."""
import argparse

from mlic_jax.commands.arguments import any_path, local_path
from mlic_jax.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("weights", type=local_path, metavar="OFFICIAL.pth.tar",
                      help="Read this checkpoint of the authors' MLIC++. Required.")
  parser.add_argument("ckpt", type=any_path, metavar="CKPT",
                      help="Write this model directory, or replace the one that is there. Required.")


def run(args: argparse.Namespace) -> None:
  """Make a model directory from the authors' weights (needs PyTorch)."""
  from mlic_jax.coding.checkpoint_io import CheckpointError, save_model
  from mlic_jax.interop import reference_weights
  if args.ckpt.exists() and not (args.ckpt / "tables.npz").is_file():
    raise CheckpointError(f"{args.ckpt}: exists and is not a model directory, so it is not replaced")
  state_dict = reference_weights.read_state_dict(args.weights)
  try:
    config, variables = reference_weights.from_state_dict(state_dict)
  except reference_weights.WeightsError as error:
    raise reference_weights.WeightsError(f"{args.weights}: {error}") from error
  save_model(args.ckpt, config, variables)
  say(f"{args.ckpt}: N={config.N}, M={config.M}, {config.num_slices} slices, window of {config.window_size}")
