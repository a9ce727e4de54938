"""Arguments that several commands share."""
import argparse
import math
from pathlib import Path

from mlic_jax.data.images import PIXELS_MAX


def positive(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text} came, a positive integer is wanted")
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


def path_arguments(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
  parser.add_argument("paths", type=Path, nargs="*", metavar=metavar, help=f"{help}; before the options")
  parser.add_argument("--out-dir", type=Path, metavar="DIR", help="where to write a file for each that is named")
  limit_argument(parser)


def limit_argument(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--max-megapixels", type=positive, metavar="N", default=PIXELS_MAX // 10**6,
                      help="refuse larger pictures; default: %(default)s")


def coder_argument(parser: argparse.ArgumentParser, default: str) -> None:
  parser.add_argument("--coder", choices=("numba", "tfc"),
                      help=f"the range coder, compiled by numba or TensorFlow Compression's; default: {default}")


def ckpt_argument(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--ckpt", type=Path, nargs="+", required=True, help=help)
