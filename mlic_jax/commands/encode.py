"""encode: compress images to .mlic files."""
import argparse
import contextlib
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlic_jax.commands import multi_file
from mlic_jax.commands.arguments import (
  check_optimization,
  checkpoint_argument,
  coder_argument,
  file_arguments,
  optimization_arguments,
  positive_integer,
  positive_number,
  skip_argument,
  tile_argument,
  tile_batch_argument,
)
from mlic_jax.commands.codec_io import CompilationNotice, load_codecs
from mlic_jax.commands.stdio import displayed, image_source, is_stream, refuse_another_ending, write
from mlic_jax.console import complain, say
from mlic_jax.data.image_io import list_images, load_image_with_profile
from mlic_jax.data.image_strips import ImageStrips, open_strips

SUMMARY = "Compress images to .mlic files."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  file_arguments(parser, "IN OUT.mlic",
                 "Compress the image IN to the file OUT; - is stdin or stdout. With --out-dir, compress any number of "
                 "images and folders. Name them before --ckpt. Required.")
  checkpoint_argument(parser, "Encode with this model directory, or the model of this training workdir; with a target, "
                              "several single-rate checkpoints may be named. Required.")
  rate = parser.add_mutually_exclusive_group()
  rate.add_argument("--quality", type=float, metavar="Q",
                    help="Encode at quality Q of a variable-rate checkpoint, from 1 (smallest file) to its number of "
                    "rate points; fractions interpolate. Default: the middle rate point.")
  rate.add_argument("--target-bytes", type=positive_integer, metavar="N",
                    help="Write the largest file of at most N bytes. Default: --quality decides.")
  rate.add_argument("--target-bpp", type=positive_number, metavar="R",
                    help="Write the largest file of at most R bits per pixel. Default: --quality decides.")
  rate.add_argument("--target-psnr", type=positive_number, metavar="DB",
                    help="Write the smallest file with a PSNR of at least DB dB. Default: --quality decides.")
  parser.add_argument("--single-chunk", action="store_true",
                      help="Write one chunk instead of one per slice, which saves about 40 bytes and prevents "
                      "progressive decoding. Default: off.")
  parser.add_argument("--no-portable", action="store_true",
                      help="Write a file that decodes only on this machine with this version of JAX, which saves some "
                      "bytes. Default: off.")
  skip_argument(parser, "Skip latent elements with a predicted scale of at most SCALE, 0.11 to 256; the decoder takes "
                        "their means. Default: off.")
  optimization_arguments(parser, "Optimize the latents of each image for STEPS steps or SECONDS seconds, such as 100 "
                                 "or 50s; the file becomes smaller or better and decodes like any other. Default: off.")
  tile_argument(parser, "Code images in tiles of at most PIXELS pixels per side or 1/16 more, a multiple of 64, which "
                        "needs only the memory for a tile; 0 never uses tiles. Default: tiles for images that do not "
                        "fit into memory.")
  tile_batch_argument(parser)
  parser.add_argument("--no-icc", action="store_true", help="Leave out the color profile of the image. Default: off.")
  coder_argument(parser, "numba")


def run(args: argparse.Namespace) -> int:
  left_out: list[str] = []
  pairs = multi_file.pair_up(args.paths, args.out_dir, ".mlic", lambda folder: list_images(folder, left_out.append))
  for _, output in pairs:
    refuse_another_ending(output, ".mlic")
  target = next((name for name in ("target_bytes", "target_bpp", "target_psnr") if getattr(args, name)), None)
  if len(args.ckpt) > 1 and not target:
    raise multi_file.BatchError(f"--ckpt names {len(args.ckpt)} checkpoints; wanted one, or a --target option")
  check_optimization(args)
  progress = multi_file.FileProgress()

  @functools.cache
  def codecs():
    found = [each.with_options(chunked=not args.single_chunk, portable=not args.no_portable, skip=args.skip,
                               refine=args.refine, lmbda=args.lmbda, tile=args.tile)
             for each in load_codecs(args.ckpt, args.coder, args.allow_custom_modules)]
    for codec in found:
      codec.progress, codec.tile_progress = progress.advance_file, progress.advance_tile
      codec.tile_batch = args.tile_batch
    return found
  compilation_notice: Callable[..., contextlib.AbstractContextManager]
  if args.refine is None:
    compilation_notice = CompilationNotice(target or "encoding")
  else:                                                  # the progress bar shows it
    compilation_notice = lambda *_: contextlib.nullcontext()

  def read(source: Path) -> tuple[np.ndarray | ImageStrips, bytes | None, str]:
    """Returns the image, its color profile and its other color information; of strips only for tiles."""
    file, pixels_max = image_source(source), args.max_megapixels * 10**6
    strips = None if target else open_strips(file, pixels_max)
    if strips is not None and codecs()[0].tile_side(*strips.shape[:2]):
      return strips, strips.icc_profile, strips.other_color
    return load_image_with_profile(file, pixels_max)

  def work(source: Path, output: Path) -> str:
    image, profile, other_colors = read(source)
    if other_colors and not args.no_icc:
      complain(f"{displayed(source, 'stdin')}: left out: {other_colors}; the only color description in a .mlic file "
               "is an ICC profile of RGB")
    profile = None if args.no_icc else profile
    if isinstance(image, ImageStrips):
      image.icc_profile = profile
    codec = codecs()[0]
    if not target:
      codec.choose_quality(args.quality)  # raises an error before the notice about compilation
    start = time.perf_counter()
    with compilation_notice(codec, *image.shape[:2]):
      if target:
        blob, note = _encode_to_target(codecs(), image, args, profile)
      else:
        blob, note = codec.encode(image, args.quality, profile), ""
    seconds = time.perf_counter() - start
    write(output, blob)
    height, width = image.shape[:2]
    return (f"{displayed(output, 'stdout')}: {len(blob)} bytes, "
            f"{8 * len(blob) / (height * width):.4f} bpp, {note}{width}x{height}, {seconds:.2f} s "
            "(compilation included)")

  if args.out_dir is None:
    with progress.bar("encode", 1) if args.refine else progress.bar_of_tiles("encode"):
      line = work(*pairs[0])
    (complain if is_stream(pairs[0][1]) else say)(line)
    return 0
  if not target:
    codecs()[0].choose_quality(args.quality)  # raises an error once instead of for each image
  codecs()
  return multi_file.run(pairs, work, "encode", args.overwrite, progress, left_out)


def _encode_to_target(codecs: list, image, args: argparse.Namespace, profile: bytes | None) -> tuple[bytes, str]:
  """Returns the file, and a note with checkpoint, quality and PSNR."""
  from mlic_jax.coding.rate_control import encode_to_bytes, encode_to_psnr
  if args.target_psnr:
    reached = encode_to_psnr(codecs, image, args.target_psnr, profile)
    wanted, last = f"{args.target_psnr:g} dB", f"the smallest file, with {reached.psnr:.2f} dB"
  else:
    height, width = image.shape[:2]
    target = args.target_bytes or math.floor(args.target_bpp * height * width / 8)
    reached = encode_to_bytes(codecs, image, target, profile)
    wanted, last = f"{target} bytes", f"the largest file, with {len(reached.blob)} bytes"
  if reached.is_last:
    complain(f"{wanted} is out of range of {reached.codec.name} for this image; writing {last}")
  notes = [reached.codec.name] if len(codecs) > 1 else []
  notes += [] if reached.quality is None else [f"quality {reached.quality:g}"]
  notes += [] if reached.psnr is None else [f"{reached.psnr:.2f} dB"]
  return reached.blob, "".join(f"{each}, " for each in notes)
