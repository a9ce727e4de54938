"""Arguments that several commands share."""
import argparse
import math
from pathlib import Path

from mlic_jax.data.image_io import PIXELS_MAX
from mlic_jax.errors import ConfigError
from mlic_jax.paths import PathError, as_path, local_path

SIDE_END = 2**32


def positive(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text} came, a positive integer is wanted")
  return int(text)


def side(text: str) -> int:
  """Of a picture, in pixels, as a file can hold it."""
  if positive(text) >= SIDE_END:
    raise argparse.ArgumentTypeError(f"{text} came, an integer below {SIDE_END} is wanted")
  return int(text)


def whole(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f"{text} came, an integer from 0 on is wanted")
  return int(text)


def above_zero(text: str) -> float:
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not 0 < number < math.inf:
    raise argparse.ArgumentTypeError(f"{text} came, a number above 0 is wanted")
  return number


def local(text: str) -> Path:
  """A local path; what is remote would otherwise become a local folder named gs:."""
  return _path(local_path, text)


def anywhere(text: str) -> Path:
  """A path that may be remote."""
  return _path(as_path, text)


def _path(read, text: str) -> Path:
  try:
    return read(text)
  except PathError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def path_arguments(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
  parser.add_argument("paths", type=local, nargs="*", metavar=metavar, help=f"{help}; before the options")
  parser.add_argument("--out-dir", type=local, metavar="DIR", help="where to write a file for each that is named")
  parser.add_argument("--overwrite", action="store_true", help="replace files that are in DIR already")
  limit_argument(parser)


def limit_argument(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--max-megapixels", type=positive, metavar="N", default=PIXELS_MAX // 10**6,
                      help="refuse larger pictures; default: %(default)s")


def coder_argument(parser: argparse.ArgumentParser, default: str) -> None:
  parser.add_argument("--coder", choices=("numba", "tfc"),
                      help=f"the range coder, compiled by numba or TensorFlow Compression's; default: {default}")


def refine_arguments(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--refine", type=_budget, metavar="STEPS|SECONDSs", help=help)
  parser.add_argument("--lmbda", type=above_zero, metavar="L",
                      help="weight of the distortion in --refine, in the scale of training; default: the quality's")


def skip_argument(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--skip", type=above_zero, metavar="SCALE", help=help)


def check_refine(args: argparse.Namespace) -> None:
  """ConfigError for --lmbda without --refine."""
  if args.lmbda and args.refine is None:
    raise ConfigError("--lmbda came without --refine, which it is for")


def _budget(text: str) -> str:
  """As Schedule.of reads it."""
  from mlic_jax.coding.latent_optimization import RefineError, Schedule
  try:
    Schedule.of(text)
  except RefineError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return text


def ckpt_argument(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--ckpt", type=anywhere, nargs="+", required=True, help=help)
