"""Rate and distortion of checkpoints from real files: a table, OUT/results.json and OUT/rd.png.

    python eval.py --ckpt CKPT [CKPT ...] [--data DIR|tfds:NAME[:SPLIT]] [--out DIR] [--limit N] [--estimate]

Without --data the photographs are those that scikit-image brings along. JPEG and WebP run on the same images.
The work is in mlic_jax/evaluation/; here are the arguments, the order of events and the terminal.
"""
import argparse
import itertools
import json
import os
import sys
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

import mlic_jax
from mlic_jax.checkpoint import CheckpointError
from mlic_jax.coding.codec import LatentError
from mlic_jax.evaluation import data, plots, rd
from mlic_jax.images import ImageError, partial_name


class UserError(ValueError):
  """An argument that cannot be used; one line with what came and what was wanted."""


class OneLineParser(argparse.ArgumentParser):
  def error(self, message):
    raise UserError(f"{message} (python eval.py --help lists the arguments)")


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = OneLineParser(prog="eval.py", description="Rate and distortion of checkpoints, from real files.")
  parser.add_argument("--ckpt", nargs="+", required=True, help="model directories or training workdirs")
  parser.add_argument("--data", help="folder of images, or tfds:NAME[:SPLIT] (default: sample photographs)")
  parser.add_argument("--out", type=Path, help="for results.json and rd.png (default: out/NAME)")
  parser.add_argument("--limit", type=_count, help="only the first LIMIT images")
  parser.add_argument("--qualities", type=_numbers,
                      help='of a variable-rate checkpoint, as "1,2.5,6" (default: all whole ones)')
  parser.add_argument("--estimate", action="store_true", help="the likelihood estimate alone, without coding")
  return parser.parse_args(argv)


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) == 0:
    raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number from 1 on")
  return int(text)


def _numbers(text: str) -> tuple[float, ...]:
  try:
    numbers = sorted({float(each) for each in text.split(",")})
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r}; wanted numbers, as "1,2.5,6"') from None
  return tuple(int(each) if each.is_integer() else each for each in numbers)


def main(argv: list[str] | None = None) -> int:
  """Exit status: 0; 2 for what the user can mend; 1 for a file that decodes to another picture."""
  try:
    evaluate(parse(argv))
  except (UserError, ImageError, CheckpointError, LatentError, rd.ReconstructionMismatch) as error:
    print(f"eval.py: {error}", file=sys.stderr)
    return 1 if isinstance(error, rd.ReconstructionMismatch) else 2
  return 0


def evaluate(arguments: argparse.Namespace) -> None:
  """The order of events. Nothing is written before everything is measured."""
  photographs = data.open_photographs(arguments.data, arguments.limit)
  codecs = [mlic_jax.Codec.load(path) for path in arguments.ckpt]
  qualities = [chosen_qualities(codec, arguments.qualities) for codec in codecs]
  out = arguments.out or Path("out") / codecs[0].name
  refuse_unwritable(out)

  with progress_bar() as progress:
    # JPEG and WebP first: they are quick, and meet every broken image.
    baselines = rd.evaluate_baselines(photographs, counter(progress, "JPEG and WebP", photographs.size))
    checkpoints = [rd.evaluate_codec(codec, each, photographs, estimate=arguments.estimate,
                                     advance=counter(progress, codec.name, photographs.size * len(each)))
                   for codec, each in zip(codecs, qualities)]

  by_name = itertools.groupby(baselines, lambda entry: entry["name"])
  anchors = [rd.Curve.of(list(entries)) for _, entries in by_name]
  curves = [rd.Curve.of(entries) for entries in checkpoints]
  bd_rates = [[rd.bd_rate(curve, anchor) for anchor in anchors] for curve in curves]

  title = f"{photographs.title}, {photographs.size} image{'s' * (photographs.size > 1)}"
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / "results.json", {
      "data": photographs.title, "estimate": arguments.estimate, "device": jax.devices()[0].device_kind,
      "checkpoints": list(itertools.chain(*checkpoints)), "baselines": baselines,
      "bd_rates": list(itertools.chain(*bd_rates))})
  plots.save_rd_plot(out / "rd.png", curves, anchors, title)

  console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
  for entries, rates in zip(checkpoints, bd_rates):
    console.print(table(f"{entries[0]['name']}: {title}", entries, anchors, arguments.estimate))
    for rate in rates:
      console.print(bd_line(rate))
  if not arguments.estimate:
    console.print("Rates are those of complete files, each decoded and compared; times exclude compilation.")
  console.print(f"Written: {out / 'results.json'}, {out / 'rd.png'}")


def chosen_qualities(codec, wanted: tuple[float, ...] | None) -> tuple[float | None, ...]:
  """All of the checkpoint's, or those asked for, if it has them."""
  if wanted is None:
    return codec.qualities
  if codec.qualities == (None,):
    raise UserError(f"--qualities: {codec.name} has a single rate; wanted a variable-rate checkpoint")
  lowest, highest = min(codec.qualities), max(codec.qualities)
  for quality in wanted:
    if not lowest <= quality <= highest:
      raise UserError(f"--qualities: {quality}; {codec.name} has qualities from {lowest} to {highest}")
  return wanted


def refuse_unwritable(out: Path) -> None:
  """Before the work rather than after it."""
  nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
  if not nearest.is_dir() or not os.access(nearest, os.W_OK):
    raise UserError(f"--out {out}: {nearest} is not a folder that can be written to")


def progress_bar() -> Progress:
  console = Console(stderr=True)
  return Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console, transient=True, disable=not console.is_terminal)


def counter(progress: Progress, description: str, total: int):
  task = progress.add_task(description, total=total)
  return lambda: progress.advance(task)


def write_json(path: Path, content: dict) -> None:
  """Whole or not at all; a NaN is refused, because JSON has none."""
  partial = partial_name(path)
  try:
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def table(title: str, entries: list[dict], anchors, estimate: bool) -> Table:
  """A row per quality; beside it what JPEG and WebP reach with as many bits."""
  columns = {"quality": lambda e: e["quality"]}
  if not estimate:
    columns["bpp"] = lambda e: f"{e['mean']['bpp']:.4f}"
  columns["estimated bpp"] = lambda e: f"{e['mean']['bpp_estimated']:.4f}"
  columns["PSNR dB"] = lambda e: f"{e['mean']['psnr']:.2f}"
  columns["MS-SSIM"] = lambda e: number(e["mean"]["ms_ssim"], ".4f")
  if not estimate:
    columns["encode s"] = lambda e: f"{e['mean']['encode_s']:.2f}"
    columns["decode s"] = lambda e: f"{e['mean']['decode_s']:.2f}"
  rate = "bpp_estimated" if estimate else "bpp"
  for anchor in anchors:
    columns[f"{anchor.name} dB"] = lambda e, anchor=anchor: number(anchor.psnr_at(e["mean"][rate]), ".2f")
  table = Table(*columns, title=title, title_justify="left")
  for column in table.columns:
    column.justify = "right"
  for each in entries:
    table.add_row(*(number(cell(each)) for cell in columns.values()))
  return table


def number(value, form: str = "") -> str:
  return "-" if value is None else format(value, form)


def bd_line(rate: dict) -> str:
  if rate["percent"] is None:
    return f"BD-rate against {rate['anchor']}: none, {rate['reason']}"
  low, high = rate["overlap_db"]
  return (f"BD-rate against {rate['anchor']}: {rate['percent']:+.1f} % "
          f"({rate['method']}, {low:.1f} to {high:.1f} dB)")


if __name__ == "__main__":
  sys.exit(main())
