"""ablate: several configurations, trained with one budget and compared."""
import argparse

from mlic_jax.commands.arguments import anywhere, local, positive, whole
from mlic_jax.console import rich_console, say

READS_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--data", type=anywhere, required=True, metavar="DIR", help="photographs, as for train.py")
  parser.add_argument("--steps", type=positive, required=True, help="of training, for each configuration")
  parser.add_argument("--workdir", type=local, required=True, metavar="DIR", help="the same one continues")
  parser.add_argument("--seeds", type=whole, nargs="+", default=(), metavar="N",
                      help="train each once with each; the table has the means, and how far they are apart")
  parser.add_argument("--equal-time", type=local, metavar="DIR",
                      help="the workdir of a table of the same rows: each gets the steps that take as long as --steps "
                      "of the first, at the pace of the runs there")
  parser.add_argument("--configs", nargs="+", metavar="FILE.py",
                      help="or names of those that come along; the first is what the others are compared with; "
                      "default: those of configs/ablations/")


def run(args: argparse.Namespace) -> int:
  """train configurations with one budget and compare them"""
  from rich.table import Table

  from mlic_jax.evaluation import ablation
  from mlic_jax.training import config_registry
  files = args.configs or [name for name in config_registry.names() if name.startswith("ablations/")]
  rows = ablation.ablate(files, args.data, args.steps, args.workdir, args.overrides, args.seeds, args.equal_time)
  (first, *others), *cells = ablation.table(rows)
  table = Table(first, title=ablation.budget(rows, args.steps), title_justify="left",
                caption=ablation.NOTE, caption_justify="left")
  for heading in others:
    table.add_column(heading, justify="right")
  for row in cells:
    table.add_row(*row)
  rich_console().print(table)
  say(f"written to {args.workdir / 'ablation.md'} and {args.workdir / 'ablation.json'}")
  return 0
