"""describe: sizes of a codec, part by part."""
import argparse

from mlic_jax.commands.arguments import side
from mlic_jax.console import rich_console

READS_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, metavar="FILE.py",
                      help="or the name of one that comes along, such as mlic_plus_plus")
  parser.add_argument("--height", type=side, default=512, help="of the picture, in pixels")
  parser.add_argument("--width", type=side, default=768)


def run(args: argparse.Namespace) -> None:
  """say how large the codec of a configuration is and how much it multiplies, part by part"""
  from rich.table import Table

  from mlic_jax.model.complexity import ENCODER_ONLY, Part, describe
  from mlic_jax.training.config_schema import load_config, model_config
  parts = describe(model_config(load_config(args.config, args.overrides), args.config), args.height, args.width)
  sum_of = lambda name, parts: Part(name, sum(p.parameters for p in parts), sum(p.kmacs for p in parts))
  sums = [sum_of("all", parts), sum_of("decoder", [p for p in parts if p.name not in ENCODER_ONLY])]
  table = Table(title=f"{args.config}, {args.width}x{args.height}", title_justify="left")
  for heading in ("part", "live parameters", "kMACs / pixel"):
    table.add_column(heading, justify="left" if heading == "part" else "right", no_wrap=True)
  for part in (*parts, *sums):
    table.add_row(part.name, f"{part.parameters:,}", f"{part.kmacs:.1f}", end_section=part is parts[-1])
  console = rich_console()
  console.print(table)
  console.print("Convolutions and linear layers only; those of a slice count at every position of y.")
