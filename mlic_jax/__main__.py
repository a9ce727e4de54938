"""The command line: python -m mlic_jax encode | decode | info | describe | convert | ablate.

A command is a function of the parsed arguments with its parser beside it; COMMANDS lists them. What a user can get
wrong is one line on stderr and exit status 2, and no output file appears unless it is whole. Of several files, those
that fail are listed at the end, with exit status 1. A command imports what it needs when it runs: `info` and --help
answer without jax.
"""
import argparse
import functools
import math
import sys
import time
from pathlib import Path

from mlic_jax.coding import batch, bitstream
from mlic_jax.errors import for_the_user
from mlic_jax.files import write_whole
from mlic_jax.host_memory import use_huge_pages
from mlic_jax.images import check_lossless, list_images, load_photograph, save_image


def encode_arguments(parser: argparse.ArgumentParser) -> None:
  _path_arguments(parser, "IN OUT.mlic",
                  "a picture, and the file to write; with --out-dir: pictures, and folders of them")
  _ckpt_argument(parser, "model directory, or workdir of a training run; with a target, several of one rate each")
  rate = parser.add_mutually_exclusive_group()
  rate.add_argument("--quality", type=float,
                    help="of a variable-rate checkpoint: 1 to its number of rates, or between; default: the middle")
  rate.add_argument("--target-bytes", type=_positive, metavar="N", help="the largest file of at most N bytes")
  rate.add_argument("--target-bpp", type=_above_zero, metavar="R", help="the same, in bits per pixel of the picture")
  rate.add_argument("--target-psnr", type=_above_zero, metavar="DB", help="the smallest file of at least DB dB")
  parser.add_argument("--single-chunk", action="store_true",
                      help="one chunk instead of one per slice: some 40 bytes less, no progressive decoding")
  parser.add_argument("--no-portable", action="store_true",
                      help="a file for this machine and this jax alone, some bytes less")
  parser.add_argument("--no-icc", action="store_true", help="leave the colour profile of the picture out")


def encode(args: argparse.Namespace) -> int:
  """compress pictures"""
  pairs = batch.pair_up(args.paths, args.out_dir, ".mlic", list_images)
  target = next((name for name in ("target_bytes", "target_bpp", "target_psnr") if getattr(args, name)), None)
  if len(args.ckpt) > 1 and not target:
    raise batch.BatchError(f"{len(args.ckpt)} checkpoints came; one is wanted, or one of the --target options")
  codecs = functools.cache(lambda: _load(args.ckpt))

  def work(source: Path, output: Path) -> str:
    image, profile = load_photograph(source, args.max_megapixels * 10**6)
    options = dict(icc_profile=None if args.no_icc else profile, chunked=not args.single_chunk,
                   portable=not args.no_portable)
    start = time.perf_counter()
    if target:
      blob, note = _encode_to_target(codecs(), image, args, options)
    else:
      blob, note = codecs()[0].encode(image, args.quality, **options), ""
    seconds = time.perf_counter() - start
    write_whole(output, blob)
    height, width = image.shape[:2]
    return (f"{output}: {len(blob)} bytes, {8 * len(blob) / (height * width):.4f} bpp, {note}{width}x{height}, "
            f"{seconds:.2f} s (compilation included)")

  if args.out_dir is None:
    print(work(*pairs[0]))
    return 0
  if not target:
    codecs()[0].choose_quality(args.quality)  # which would otherwise fail with every picture
  codecs()
  return batch.run(pairs, work, "encode")


def _encode_to_target(codecs: list, image, args: argparse.Namespace, options: dict) -> tuple[bytes, str]:
  """The file, and what was reached, in words."""
  from mlic_jax.coding.rate_control import encode_to_bytes, encode_to_psnr
  if args.target_psnr:
    reached = encode_to_psnr(codecs, image, args.target_psnr, **options)
    wanted, last = f"{args.target_psnr:g} dB", f"{reached.psnr:.2f} dB, the least it makes"
  else:
    height, width = image.shape[:2]
    target = args.target_bytes or math.floor(args.target_bpp * height * width / 8)
    reached = encode_to_bytes(codecs, image, target, **options)
    wanted, last = f"{target} bytes", f"{len(reached.blob)} bytes, the most it makes"
  if reached.is_last:
    print(f"out of range: {wanted} of {reached.codec.name}; taking {last} of this picture", file=sys.stderr)
  said = [reached.codec.name] if len(codecs) > 1 else []
  said += [] if reached.quality is None else [f"quality {reached.quality:g}"]
  said += [] if reached.psnr is None else [f"{reached.psnr:.2f} dB"]
  return reached.blob, "".join(f"{each}, " for each in said)


def decode_arguments(parser: argparse.ArgumentParser) -> None:
  _path_arguments(parser, "IN.mlic OUT.png",
                  "a file, and the picture to write: .png .webp .tif .bmp; with --out-dir: files, folders of them")
  _ckpt_argument(parser, "the checkpoint that wrote the file; of several, the one that did is taken")
  parser.add_argument("--slices", type=_whole, metavar="K",
                      help="decode the first K slices, and predict the others from them")
  parser.add_argument("--partial", action="store_true",
                      help="take a file that was cut short, and decode the slices that arrived")


def decode(args: argparse.Namespace) -> int:
  """restore the pictures in .mlic files"""
  pairs = batch.pair_up(args.paths, args.out_dir, ".png", _list_mlic)
  for _, output in pairs:
    check_lossless(output)
  pixels_max = args.max_megapixels * 10**6
  codecs = functools.cache(lambda: _load(args.ckpt))

  def work(source: Path, output: Path) -> str:
    blob, content = _read(source, pixels_max, args.partial)
    codec = next((each for each in codecs() if each.fingerprint == content.fingerprint), codecs()[0])
    start = time.perf_counter()
    image = codec.decode(blob, args.slices, args.partial, pixels_max)
    seconds = time.perf_counter() - start
    save_image(output, image, content.icc_profile)
    decoded = content.num_arrived if args.slices is None else min(args.slices, content.num_arrived)
    note = "" if decoded == content.num_slices else f"{decoded} of {content.num_slices} slices, "
    return f"{output}: {image.shape[1]}x{image.shape[0]}, {note}{seconds:.2f} s (compilation included)"

  if args.out_dir is None:
    print(work(*pairs[0]))
    return 0
  codecs()
  return batch.run(pairs, work, "decode")


def _list_mlic(folder: Path) -> list[Path]:
  """The .mlic files in a folder and below; BatchError if there is none."""
  files = sorted(path for path in folder.rglob("*.mlic") if not path.name.startswith(".") and path.is_file())
  if not files:
    raise batch.BatchError(f"{folder}: holds no .mlic file")
  return files


def info_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("file", type=Path, metavar="IN.mlic")
  _limit_argument(parser)


def info(args: argparse.Namespace) -> None:
  """say what a .mlic file holds"""
  blob, content = _read(args.file, args.max_megapixels * 10**6)
  quality = "single rate" if content.quality is None else f"{content.quality:g}"
  sizes = [len(chunk) for chunk in content.chunks]
  slices = "in one chunk" if content.single_chunk else f"of {', '.join(map(str, sizes[1:]))} bytes, after {sizes[0]}"
  profile = "none" if content.icc_profile is None else f"ICC, {len(content.icc_profile)} bytes before compression"
  decoding = "where it was written, or where arithmetic is the same bit for bit"
  if content.origin is not None:
    decoding = f"portable, epsilon {content.origin.epsilon}, written on {content.origin}"
  print(f"size        {content.width}x{content.height}")
  print(f"bytes       {len(blob)}, {sum(sizes)} of them coded data")
  print(f"bpp         {8 * len(blob) / (content.height * content.width):.4f}")
  print(f"quality     {quality}")
  print(f"slices      {content.num_slices}, {slices}")
  print(f"profile     {profile}")
  print(f"decoding    {decoding}")
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
  from mlic_jax.training.loop import Interrupted, NonFiniteLoss, SaveError
  files = args.configs or sorted(Path("configs/ablations").glob("[!_]*.py"))
  try:
    rows = ablation.ablate(files, args.data, args.steps, args.workdir)
  except (NonFiniteLoss, SaveError) as error:
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


def _whole(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f"{text} came, an integer from 0 on is wanted")
  return int(text)


def _above_zero(text: str) -> float:
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not 0 < number < math.inf:
    raise argparse.ArgumentTypeError(f"{text} came, a number above 0 is wanted")
  return number


def _path_arguments(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
  parser.add_argument("paths", type=Path, nargs="*", metavar=metavar, help=f"{help}; before the options")
  parser.add_argument("--out-dir", type=Path, metavar="DIR", help="where to write a file for each that is named")
  _limit_argument(parser)


def _limit_argument(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--max-megapixels", type=_positive, metavar="N", default=bitstream.PIXELS_MAX // 10**6,
                      help="refuse larger pictures; default: %(default)s")


def _ckpt_argument(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--ckpt", type=Path, nargs="+", required=True, help=help)


def _load(paths: list[Path]) -> list:
  from mlic_jax.coding import rangecoder
  rangecoder.load_in_background()
  from mlic_jax.coding.codec import Codec
  return [Codec.load(path) for path in paths]


def _read(path: Path, pixels_max: int, partial: bool = False) -> tuple[bytes, bitstream.Bitstream]:
  """The bytes of a file and what they hold; BitstreamError names the file otherwise."""
  with path.open("rb") as file:
    blob = file.read(bitstream.HEADER_SIZE_MAX)
    try:
      bitstream.check_header(blob, pixels_max)  # before the rest is read, which may be of any size
      blob += file.read()
      return blob, bitstream.parse(blob, pixels_max, partial)
    except bitstream.BitstreamError as error:
      raise bitstream.BitstreamError(f"{path}: {error}") from None


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns the exit status."""
  parser = _Parser(prog="python -m mlic_jax", description="Learned image compression.")
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, (run, add_arguments) in COMMANDS.items():
    add_arguments(commands.add_parser(name, help=run.__doc__, description=run.__doc__))
  args = parser.parse_args(argv)
  try:
    return COMMANDS[args.command][0](args) or 0
  except (OSError, ValueError) as error:
    line = for_the_user(error)
    if line is None:
      raise
    return _fail(line)


def _fail(message: str, status: int = 2) -> int:
  print(f"error: {message}", file=sys.stderr)
  return status


if __name__ == "__main__":
  use_huge_pages()
  sys.exit(main())
