"""decode: decode .mlic files to images."""
import argparse
import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlic_jax.atomic_io import whole_file
from mlic_jax.coding.tile_grid import Box
from mlic_jax.commands import multi_file
from mlic_jax.commands.arguments import (
  checkpoint_argument,
  coder_argument,
  file_arguments,
  nonnegative_integer,
  tile_batch_argument,
)
from mlic_jax.commands.codec_io import CompilationNotice, MlicFile, load_codecs, open_mlic
from mlic_jax.commands.stdio import displayed, is_stdio, is_stream, write
from mlic_jax.console import complain, say
from mlic_jax.data.file_listing import list_files
from mlic_jax.data.image_io import check_lossless, encode_lossless
from mlic_jax.data.png_writer import PngWriter

SUMMARY = "Decode .mlic files to images."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  file_arguments(parser, "IN.mlic OUT.png",
                 "Decode the .mlic file IN to the image OUT, whose name ends in .png, .webp, .tif or .bmp; - is stdin, "
                 "or a PNG to stdout. With --out-dir, decode any number of files and folders. Name them before "
                 "--ckpt. Required.")
  checkpoint_argument(parser, "Decode with this checkpoint, which has to be the one that wrote the file; of several, "
                              "the right one is used. Required.")
  parser.add_argument("--slices", type=nonnegative_integer, metavar="K",
                      help="Decode the first K slices and predict the others from them. Default: all slices.")
  parser.add_argument("--partial", action="store_true",
                      help="Decode the complete slices of a truncated file, and the complete tiles of a tiled "
                      "file. Default: off.")
  parser.add_argument("--region", type=_region, metavar="X,Y,W,H",
                      help="Decode only the region of W x H pixels with its upper left corner at column X and row Y, "
                      "and read only the tiles that it needs. Default: the whole image.")
  tile_batch_argument(parser)
  coder_argument(parser, "numba")


def run(args: argparse.Namespace) -> int:
  left_out: list[str] = []
  pairs = multi_file.pair_up(args.paths, args.out_dir, ".png", lambda folder: _list_mlic(folder, left_out.append))
  for _, output in pairs:
    check_lossless(_name(output))
  pixels_max = args.max_megapixels * 10**6
  codecs = functools.cache(lambda: load_codecs(args.ckpt, args.coder, args.allow_custom_modules))
  compilation_notice, progress = CompilationNotice("decoding"), multi_file.FileProgress()

  def work(source: Path, output: Path) -> str:
    with open_mlic(source, pixels_max, args.partial) as file:
      content = file.content
      codec = next((each for each in codecs() if each.fingerprint == content.fingerprint), codecs()[0])
      codec.tile_progress, codec.tile_batch = progress.advance_tile, args.tile_batch
      start = time.perf_counter()
      refused = codec.fingerprint != content.fingerprint   # decode refuses the file before it compiles anything
      with contextlib.nullcontext() if refused else compilation_notice(codec, content.height, content.width):
        report = lambda line: complain(f"{displayed(source, 'stdin')}: {line}")
        height, width = _decode(codec, file, output, args, report)
      seconds = time.perf_counter() - start
    if content.icc_profile is not None and output.suffix.lower() == ".bmp":
      complain(f"{output}: left out: the color profile, which a BMP cannot hold")
    received = content.num_slices if file.tiled else content.num_received
    decoded = received if args.slices is None else min(args.slices, received)
    note = "" if decoded == content.num_slices else f"{decoded} of {content.num_slices} slices, "
    return (f"{displayed(output, 'stdout')}: {width}x{height}, {note}{seconds:.2f} s "
            "(compilation included)")

  if args.out_dir is None:
    with progress.bar_of_tiles("decode"):
      line = work(*pairs[0])
    (complain if is_stream(pairs[0][1]) else say)(line)
    return 0
  codecs()
  return multi_file.run(pairs, work, "decode", args.overwrite, progress, left_out)


def _decode(codec, file: MlicFile, output: Path, args: argparse.Namespace,
            report: Callable[[str], None]) -> tuple[int, int]:
  """Decodes a file, or the region of --region, and writes the image; returns its height and width.

  `report` is called with a line about each incomplete tile. The PNG of a tiled file is written in strips."""
  content = file.content
  area = args.region or Box(0, 0, content.height, content.width)
  area.check_inside(content.height, content.width)
  if file.tiled is None:
    image = codec.decode(file.blob, args.slices, args.partial, args.max_megapixels * 10**6)
    image = np.ascontiguousarray(image[area.slices])
  else:
    decoder = codec.open_tiled(file.tiled, args.slices, args.partial, report)
    if _name(output).suffix.lower() == ".png" and not is_stdio(output):
      with whole_file(output) as partial, partial.open("wb") as png:
        writer = PngWriter(png, area.height, area.width, content.icc_profile)
        for strip in decoder.strips(area):
          writer.write(strip)
        writer.finish()
      return area.height, area.width
    image = decoder.decode(area)
  write(output, encode_lossless(_name(output), image, content.icc_profile))
  return area.height, area.width


def _region(text: str) -> Box:
  parts = text.split(",")
  if len(parts) != 4 or not all(part.isdecimal() for part in parts) or "0" in parts[2:]:
    raise argparse.ArgumentTypeError(f'{text!r}; wanted column, row, width and height, as in "0,0,512,512"')
  x, y, width, height = map(int, parts)
  return Box(y, x, y + height, x + width)


def _name(output: Path) -> Path:
  """Returns a name whose suffix is the format of the output: PNG for streams."""
  return Path("stdout.png") if is_stdio(output) else Path(f"{output}.png") if is_stream(output) else output


def _list_mlic(folder: Path, warn: Callable[[str], None]) -> list[Path]:
  """Lists the .mlic files in a folder and below. BatchError if there is none; `warn` is called as in list_images."""
  listing = list_files(folder, lambda name: name.lower().endswith(".mlic"))
  left_out = f"left out {listing.summary()}" if listing.left_out else ""
  if not listing.files:
    raise multi_file.BatchError(f"{folder}: holds no .mlic file{f', {left_out}' if left_out else ''}")
  if left_out:
    warn(f"{folder}: {left_out}")
  return listing.files
