"""describe: print the parameters and multiplications of the parts of a codec."""
import argparse

from mlic_jax.commands.arguments import config_argument, image_size_arguments
from mlic_jax.console import show

SUMMARY = "Print the parameters and multiplications of the parts of a codec."
READS_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  config_argument(parser)
  image_size_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from rich.table import Table

  from mlic_jax.model.complexity import ENCODER_ONLY, Part, describe
  from mlic_jax.runtime.platforms import check_platforms
  from mlic_jax.training.config_schema import load_config, model_config
  check_platforms()
  parts = describe(model_config(load_config(args.config, args.overrides), args.config), args.height, args.width)
  sum_of = lambda name, parts: Part(name, sum(p.parameters for p in parts), sum(p.kmacs for p in parts))
  sums = [sum_of("total", parts), sum_of("decoder", [p for p in parts if p.name not in ENCODER_ONLY])]
  table = Table(title=f"{args.config}, {args.width}x{args.height}", title_justify="left")
  for heading in ("part", "live parameters", "kMACs / pixel"):
    table.add_column(heading, justify="left" if heading == "part" else "right", no_wrap=True)
  for part in (*parts, *sums):
    table.add_row(part.name, f"{part.parameters:,}", f"{part.kmacs:.1f}", end_section=part is parts[-1])
  show(table, "Only convolutions and linear layers are counted; those of a slice count at every position of y.")
