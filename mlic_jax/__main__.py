"""The command line: python -m mlic_jax encode | decode | info | describe | convert | ablate.

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


def describe_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, metavar="FILE.py", help="such as configs/mlic_plus_plus.py")
  parser.add_argument("--height", type=_positive, default=512, help="of the picture, in pixels")
  parser.add_argument("--width", type=_positive, default=768)


def describe(args: argparse.Namespace) -> None:
  """say how large the codec of a configuration is and how much it multiplies, part by part"""
  from rich.console import Console
  from rich.table import Table

  from mlic_jax.config_file import load_config, model_config
  from mlic_jax.describe import ENCODER_ONLY, Part, describe
  parts = describe(model_config(load_config(args.config), args.config), args.height, args.width)
  sum_of = lambda name, parts: Part(name, sum(p.parameters for p in parts), sum(p.kmacs for p in parts))
  sums = [sum_of("all", parts), sum_of("decoder", [p for p in parts if p.name not in ENCODER_ONLY])]
  table = Table(title=f"{args.config}, {args.width}x{args.height}", title_justify="left")
  for heading in ("part", "live parameters", "kMACs / pixel"):
    table.add_column(heading, justify="left" if heading == "part" else "right", no_wrap=True)
  for part in (*parts, *sums):
    table.add_row(part.name, f"{part.parameters:,}", f"{part.kmacs:.1f}", end_section=part is parts[-1])
  console = Console(highlight=False)
  console.print(table)
  console.print("Convolutions and linear layers only; those of a slice count at every position of y.")


def convert_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("weights", type=Path, metavar="OFFICIAL.pth.tar", help="a checkpoint of the authors' MLIC++")
  parser.add_argument("ckpt", type=Path, metavar="CKPT", help="model directory to write")


def convert(args: argparse.Namespace) -> None:
  """make a model directory of the authors' weights (needs PyTorch)"""
  from mlic_jax.checkpoint import CheckpointError, save_model
  from mlic_jax.interop import official
  if args.ckpt.exists() and not (args.ckpt / "tables.npz").is_file():
    raise CheckpointError(f"{args.ckpt}: exists, and is no model directory that could be replaced")
  state_dict = official.read_state_dict(args.weights)
  try:
    config, variables = official.from_state_dict(state_dict)
  except official.WeightsError as error:
    raise official.WeightsError(f"{args.weights}: {error}") from error
  save_model(args.ckpt, config, variables)
  print(f"{args.ckpt}: N={config.N}, M={config.M}, {config.num_slices} slices, window of {config.window_size}")


def ablate_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="photographs, as for train.py")
  parser.add_argument("--steps", type=_positive, required=True, help="of training, for each configuration")
  parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="the same one continues")
  parser.add_argument("--configs", nargs="+", metavar="FILE.py",
                      help="the first is what the others are compared with; default: configs/ablations/*.py by name")


def ablate(args: argparse.Namespace) -> int:
  """train configurations with one budget and compare them"""
  from rich.console import Console
  from rich.table import Table

  from mlic_jax.training import ablation
  from mlic_jax.training.loop import Interrupted, NonFiniteLoss
  files = args.configs or sorted(Path("configs/ablations").glob("[!_]*.py"))
  try:
    rows = ablation.ablate(files, args.data, args.steps, args.workdir)
  except NonFiniteLoss as error:
    return _fail(str(error), status=1)
  except Interrupted as stop:
    return _fail(str(stop), status=128 + stop.signum)
  (first, *others), *cells = ablation.table(rows)
  table = Table(first, title=f"{args.steps} steps each", title_justify="left",
                caption=ablation.NOTE, caption_justify="left")
  for heading in others:
    table.add_column(heading, justify="right")
  for row in cells:
    table.add_row(*row)
  Console(highlight=False).print(table)
  print(f"written to {args.workdir / 'ablation.md'} and {args.workdir / 'ablation.json'}")
  return 0


COMMANDS = {"encode": (encode, encode_arguments), "decode": (decode, decode_arguments), "info": (info, info_arguments),
            "describe": (describe, describe_arguments), "convert": (convert, convert_arguments),
            "ablate": (ablate, ablate_arguments)}


class _Parser(argparse.ArgumentParser):
  """Says what is wrong with the arguments in one line, like every other error here."""

  def error(self, message: str):
    self.exit(2, f"error: {message}; {self.prog} --help lists the arguments\n")


def _positive(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text} came, a positive integer is wanted")
  return int(text)


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
  parser = _Parser(prog="python -m mlic_jax", description="Learned image compression.")
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, (run, add_arguments) in COMMANDS.items():
    add_arguments(commands.add_parser(name, help=run.__doc__, description=run.__doc__))
  args = parser.parse_args(argv)
  try:
    return COMMANDS[args.command][0](args) or 0
  except OSError as error:
    return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
  except ValueError as error:
    if not _is_for_the_user(error):
      raise
    return _fail(str(error))


def _is_for_the_user(error: ValueError) -> bool:
  """ImageError, BitstreamError, CheckpointError, ConfigError, ...: one line each. Another ValueError is a bug."""
  return type(error).__module__.startswith("mlic_jax.")


def _fail(message: str, status: int = 2) -> int:
  print(f"error: {message}", file=sys.stderr)
  return status


if __name__ == "__main__":
  sys.exit(main())
