"""convert: the authors' weights to a model directory."""
import argparse

from mlic_jax.commands.arguments import anywhere, local
from mlic_jax.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("weights", type=local, metavar="OFFICIAL.pth.tar", help="a checkpoint of the authors' MLIC++")
  parser.add_argument("ckpt", type=anywhere, metavar="CKPT", help="model directory to write")


def run(args: argparse.Namespace) -> None:
  """make a model directory of the authors' weights (needs PyTorch)"""
  from mlic_jax.coding.checkpoint_io import CheckpointError, save_model
  from mlic_jax.interop import reference_weights
  if args.ckpt.exists() and not (args.ckpt / "tables.npz").is_file():
    raise CheckpointError(f"{args.ckpt}: exists, and is no model directory that could be replaced")
  state_dict = reference_weights.read_state_dict(args.weights)
  try:
    config, variables = reference_weights.from_state_dict(state_dict)
  except reference_weights.WeightsError as error:
    raise reference_weights.WeightsError(f"{args.weights}: {error}") from error
  save_model(args.ckpt, config, variables)
  say(f"{args.ckpt}: N={config.N}, M={config.M}, {config.num_slices} slices, window of {config.window_size}")
