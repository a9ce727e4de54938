"""info: print what a .mlic file contains."""
import argparse

from mlic_jax.coding.bitstream import TILED_VERSION
from mlic_jax.commands.arguments import local_path_or_stdio, pixel_limit_argument
from mlic_jax.commands.codec_io import open_mlic
from mlic_jax.console import say
from mlic_jax.model.scale_table import scale_table

SUMMARY = "Print what a .mlic file contains."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("file", type=local_path_or_stdio, metavar="IN.mlic",
                      help="Read this file, or stdin for -. Required.")
  pixel_limit_argument(parser)


def run(args: argparse.Namespace) -> None:
  with open_mlic(args.file, args.max_megapixels * 10**6) as file:
    content, num_bytes, tiles = file.content, len(file.blob), ""
    if file.tiled is not None:
      grid, num_bytes = file.tiled.grid, file.tiled.num_bytes
      tiles = f"{grid.rows} rows of {grid.columns}, of {grid.tile_width}x{grid.tile_height} pixels"
  quality = "single rate" if content.quality is None else f"{content.quality:g}"
  sizes = [len(chunk) for chunk in content.chunks]
  slices = "in each tile" if tiles else "in one chunk"
  if not (content.single_chunk or tiles):
    slices = f"of {', '.join(map(str, sizes[1:]))} bytes, after {sizes[0]}"
  profile = "none" if content.icc_profile is None else f"ICC, {len(content.icc_profile)} bytes before compression"
  decoding = "only where arithmetic is bit-identical to that of the encoder"
  if content.origin is not None:
    decoding = f"portable, epsilon {content.origin.epsilon}, written on {content.origin}"
  say(f"size        {content.width}x{content.height}")
  say(f"bytes       {num_bytes}{'' if tiles else f', {sum(sizes)} of them coded data'}")
  say(f"bpp         {8 * num_bytes / (content.height * content.width):.4f}")
  say(f"quality     {quality}")
  say(f"slices      {content.num_slices}, {slices}")
  if tiles:
    say(f"tiles       {tiles}")
  say(f"profile     {profile}")
  say(f"decoding    {decoding}")
  say(f"checkpoint  {content.fingerprint.hex()}")
  if content.skipped_rows:
    say(f"skipped     elements with scales up to {scale_table()[content.skipped_rows - 1]:.3g}")
  if content.uses_map:
    say("skipped     elements by the selection map of the model")
  say(f"version     {TILED_VERSION if tiles else content.version}")
