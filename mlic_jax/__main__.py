"""The command line: python -m mlic_jax encode | decode | info.

A command is a function of the parsed arguments with its parser beside it; COMMANDS lists them. What a user can get
wrong is one line on stderr and exit status 2, and no output file appears unless it is whole. A command imports what it
needs when it runs: `info` and --help answer without jax.
"""
import argparse
import os
import sys
import time
from pathlib import Path

from mlic_jax.coding import bitstream
from mlic_jax.images import load_image, partial_name, save_image


def encode_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("image", type=Path, help="a picture, any size: greyscale becomes RGB, transparency becomes white")
  parser.add_argument("output", type=Path, metavar="OUT.mlic")
  parser.add_argument("--ckpt", type=Path, required=True, help="model directory, or workdir of a training run")
  parser.add_argument("--quality", type=float,
                      help="of a variable-rate checkpoint: 1 to its number of rates, or between; default: the middle")


def encode(args: argparse.Namespace) -> None:
  """compress a picture"""
  image = load_image(args.image)
  codec = _load(args.ckpt)
  start = time.perf_counter()
  blob = codec.encode(image, args.quality)
  seconds = time.perf_counter() - start
  _write(args.output, blob)
  height, width = image.shape[:2]
  print(f"{args.output}: {len(blob)} bytes, {8 * len(blob) / (height * width):.4f} bpp, {width}x{height}, "
        f"{seconds:.2f} s (compilation included)")


def decode_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("file", type=Path, metavar="IN.mlic")
  parser.add_argument("output", type=Path, metavar="OUT.png", help=".png, or another format without loss")
  parser.add_argument("--ckpt", type=Path, required=True, help="the checkpoint that wrote the file")


def decode(args: argparse.Namespace) -> None:
  """restore the picture in a .mlic file"""
  blob = _read(args.file)
  codec = _load(args.ckpt)
  start = time.perf_counter()
  image = codec.decode(blob)
  seconds = time.perf_counter() - start
  save_image(args.output, image)
  print(f"{args.output}: {image.shape[1]}x{image.shape[0]}, {seconds:.2f} s (compilation included)")


def info_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("file", type=Path, metavar="IN.mlic")


def info(args: argparse.Namespace) -> None:
  """say what a .mlic file holds"""
  blob = _read(args.file)
  content = bitstream.parse(blob)
  quality = "single rate" if content.quality is None else f"{content.quality:g}"
  print(f"size        {content.width}x{content.height}")
  print(f"bytes       {len(blob)}, {len(content.stream)} of them coded data")
  print(f"bpp         {8 * len(blob) / (content.height * content.width):.4f}")
  print(f"quality     {quality}")
  print(f"checkpoint  {content.fingerprint.hex()}")
  print(f"version     {bitstream.VERSION}")


COMMANDS = {"encode": (encode, encode_arguments), "decode": (decode, decode_arguments), "info": (info, info_arguments)}


def _load(path: Path):
  from mlic_jax.coding.codec import Codec
  return Codec.load(path)


def _read(path: Path) -> bytes:
  """The bytes of a file that parses; BitstreamError names it otherwise."""
  blob = path.read_bytes()
  try:
    bitstream.parse(blob)
  except bitstream.BitstreamError as error:
    raise bitstream.BitstreamError(f"{path}: {error}") from None
  return blob


def _write(path: Path, blob: bytes) -> None:
  partial = partial_name(path)
  try:
    partial.write_bytes(blob)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns the exit status."""
  parser = argparse.ArgumentParser(prog="python -m mlic_jax", description="Learned image compression.")
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, (run, add_arguments) in COMMANDS.items():
    add_arguments(commands.add_parser(name, help=run.__doc__, description=run.__doc__))
  args = parser.parse_args(argv)
  try:
    COMMANDS[args.command][0](args)
  except OSError as error:
    return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
  except ValueError as error:
    if not _is_for_the_user(error):
      raise
    return _fail(str(error))
  return 0


def _is_for_the_user(error: ValueError) -> bool:
  """ImageError, BitstreamError, CheckpointError, QualityError: one line each. Another ValueError is a bug."""
  return type(error).__module__.startswith("mlic_jax.")


def _fail(message: str) -> int:
  print(f"error: {message}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main())
