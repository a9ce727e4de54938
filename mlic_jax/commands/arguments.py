"""Arguments that several commands share, and the types of their values."""
import argparse
import math
from pathlib import Path

from mlic_jax import paths
from mlic_jax.commands import stdio
from mlic_jax.data.image_io import PIXELS_MAX
from mlic_jax.errors import ConfigError

SIDE_END = 2**32


def positive_integer(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text!r}; wanted a positive integer")
  return int(text)


def image_side(text: str) -> int:
  """Parses a height or width in pixels that a .mlic file can store."""
  if positive_integer(text) >= SIDE_END:
    raise argparse.ArgumentTypeError(f"{text!r}; wanted an integer below {SIDE_END}")
  return int(text)


def nonnegative_integer(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f"{text!r}; wanted an integer of at least 0")
  return int(text)


def positive_number(text: str) -> float:
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not 0 < number < math.inf:
    raise argparse.ArgumentTypeError(f"{text!r}; wanted a number above 0")
  return number


def local_path(text: str) -> Path:
  """Parses a local path. A remote one is refused: it would become a local folder named gs:."""
  return _path(paths.local_path, text)


def local_path_or_stdio(text: str) -> Path:
  """Parses a local path, or - for stdin or stdout."""
  return _path(stdio.file_or_stdio, text)


def any_path(text: str) -> Path:
  """Parses a local or remote path."""
  return _path(paths.as_path, text)


def _path(read, text: str) -> Path:
  try:
    return read(text)
  except paths.PathError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def config_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --config, for the commands with READS_CONFIG, which also take --config.FIELD=VALUE."""
  parser.add_argument("--config", required=True, metavar="CONFIG[:ARGUMENT]",
                      help="Read the config from a Python file with get_config(), or by the name of a config in the "
                      "package, such as nano. The text after a colon is the argument of get_config, as in "
                      "mlic_plus_plus:mse:3. Required.")


def file_arguments(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
  """Adds the input and output files of encode and decode."""
  parser.add_argument("paths", type=local_path_or_stdio, nargs="*", metavar=metavar, help=help)
  parser.add_argument("--out-dir", type=local_path, metavar="DIR",
                      help="Write one file to DIR for each input. Default: write OUT.")
  parser.add_argument("--overwrite", action="store_true",
                      help="Replace files that are already in the folder of --out-dir. Default: off.")
  pixel_limit_argument(parser)


def pixel_limit_argument(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--max-megapixels", type=positive_integer, metavar="N", default=PIXELS_MAX // 10**6,
                      help="Refuse images with more than N million pixels. Default: %(default)s.")


def image_size_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--height", type=image_side, default=512, metavar="PIXELS",
                      help="Assume images of this height. Default: %(default)s.")
  parser.add_argument("--width", type=image_side, default=768, metavar="PIXELS",
                      help="Assume images of this width. Default: %(default)s.")


def coder_argument(parser: argparse.ArgumentParser, default: str) -> None:
  parser.add_argument("--coder", choices=("numba", "tfc"),
                      help="Use the range coder compiled by numba, or that of TensorFlow Compression; both write the "
                      f"same bytes. Default: {default}.")


def optimization_arguments(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--refine", type=_optimization_budget, metavar="STEPS|SECONDSs", help=help)
  parser.add_argument("--lmbda", type=positive_number, metavar="L",
                      help="Weight the distortion by L in --refine, in the scale of training. Default: the lambda of "
                      "the quality.")


def tile_argument(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--tile", type=nonnegative_integer, metavar="PIXELS", help=help)


def tile_batch_argument(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--tile-batch", type=positive_integer, metavar="N", default=1,
                      help="Compute N tiles at a time on each device, which fills an accelerator; any decoder reads "
                      "the file. Default: %(default)s.")


def skip_argument(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--skip", type=positive_number, metavar="SCALE", help=help)


def check_optimization(args: argparse.Namespace) -> None:
  """Raises ConfigError for --lmbda without --refine."""
  if args.lmbda and args.refine is None:
    raise ConfigError("--lmbda has no effect without --refine; wanted both or neither")


def _optimization_budget(text: str) -> str:
  """Parses a number of steps or seconds (Schedule.of)."""
  from mlic_jax.coding.optimization_schedule import RefineError, Schedule
  try:
    Schedule.of(text)
  except RefineError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return text


def checkpoint_argument(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--ckpt", type=any_path, nargs="+", required=True, metavar="CKPT", help=help)
  custom_modules_argument(parser)


def custom_modules_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --allow-custom-modules, for every command that loads a model directory."""
  parser.add_argument("--allow-custom-modules", action="store_true",
                      help="Import Python modules that a model directory names for contexts or transforms. They can "
                      "run any code, so allow it only for models that you trust. Default: off.")
