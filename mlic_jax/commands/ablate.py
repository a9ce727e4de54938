"""ablate: train several configs with one budget and compare them."""
import argparse

from mlic_jax.commands.arguments import any_path, local_path, nonnegative_integer, positive_integer
from mlic_jax.console import say, show

SUMMARY = "Train several configs with one budget and compare them."
READS_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--data", type=any_path, required=True, metavar="DIR",
                      help="Train on the images in DIR, like --config.data_dir of train. Required.")
  parser.add_argument("--steps", type=positive_integer, required=True, metavar="N",
                      help="Train each config for N steps. Required.")
  parser.add_argument("--workdir", type=local_path, required=True, metavar="DIR",
                      help="Write the runs and the table to DIR, or continue the runs in DIR. Required.")
  parser.add_argument("--seeds", type=nonnegative_integer, nargs="+", default=(), metavar="SEED",
                      help="Train each config once with each seed; the table has their means and extremes. "
                      "Default: the seed of the config.")
  parser.add_argument("--equal-time", type=local_path, metavar="DIR",
                      help="Give each config the time that the first one needs for --steps, at the speeds in DIR, "
                      "the workdir of an earlier ablation with the same rows. Default: equal steps.")
  parser.add_argument("--latents", type=any_path, metavar="CKPT",
                      help="Train only the entropy models, on the latents of this model directory, and compare their "
                      "bits. Default: train whole codecs.")
  parser.add_argument("--configs", nargs="+", metavar="CONFIG",
                      help="Train these config files or names, and compare them with the first. "
                      "Default: the configs of configs/ablations/.")


def run(args: argparse.Namespace) -> int:
  from rich.table import Table

  from mlic_jax.evaluation import ablation
  from mlic_jax.training import config_registry
  files = args.configs or [name for name in config_registry.names() if name.startswith("ablations/")]
  rows = ablation.ablate(files, args.data, args.steps, args.workdir, args.overrides, args.seeds, args.equal_time,
                         args.latents)
  (first, *others), *cells = ablation.table(rows)
  table = Table(first, title=ablation.budget(rows, args.steps), title_justify="left",
                caption=ablation.NOTE, caption_justify="left")
  for heading in others:
    table.add_column(heading, justify="right")
  for row in cells:
    table.add_row(*row)
  show(table)
  say(f"wrote {args.workdir / 'ablation.md'} and {args.workdir / 'ablation.json'}")
  return 0
