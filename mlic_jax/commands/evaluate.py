"""Rate and distortion of checkpoints from real files: a table, results.json, plots, and a page to look at.

    python eval.py --ckpt CKPT [CKPT ...] [--data DIR|tfds:NAME[:SPLIT]] [--out DIR] [--limit N] [--estimate]
                   [--progressive] [--skip SCALE] [--refine STEPS]

Without --data the photographs are those that scikit-image brings along. Conventional codecs run on the same images, and
published curves can stand beside them. --progressive measures, too, what is seen of a picture while its file arrives,
--skip and --refine what becomes of each checkpoint when sure elements are left out, and latents are optimised for every
picture.
What is written, and what is meant by every number: docs/evaluation.md. The work is in mlic_jax/evaluation/; here are
the arguments and the order of events.
"""
import argparse
import functools
import os
from pathlib import Path

import jax
import numpy as np
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

import mlic_jax
from mlic_jax.atomic_io import write_whole
from mlic_jax.coding import rangecoder
from mlic_jax.coding.memory_estimate import check_memory
from mlic_jax.commands.arguments import (
  check_refine,
  coder_argument,
  local,
  positive,
  refine_arguments,
  skip_argument,
  whole,
)
from mlic_jax.commands.codec_io import FirstPicture
from mlic_jax.commands.exit_codes import outcome
from mlic_jax.console import complain, rich_console
from mlic_jax.data.file_listing import MEASUREMENTS
from mlic_jax.evaluation import (
  baselines,
  bd_rate,
  bit_maps,
  codec_cost,
  dataset,
  plots,
  published_curves,
  report,
  results,
  runner,
)
from mlic_jax.evaluation.console_tables import say
from mlic_jax.evaluation.progressive import Arrivals, arrival_curves
from mlic_jax.evaluation.report_images import Pictures
from mlic_jax.evaluation.results_cache import Journal
from mlic_jax.evaluation.workers import InThisProcess, Processes


class UserError(ValueError):
  """An argument that cannot be used; one line with what came and what was wanted."""


class OneLineParser(argparse.ArgumentParser):
  def error(self, message):
    raise UserError(f"{message} ({self.prog} --help lists the arguments)")


def parse(argv: list[str] | None, program: str) -> argparse.Namespace:
  parser = OneLineParser(prog=program, description="Rate and distortion of checkpoints, from real files.")
  parser.add_argument("--ckpt", nargs="+", required=True,
                      help="model directories or training workdirs; single rates of one family are one curve")
  parser.add_argument("--data", help="folder of images, or tfds:NAME[:SPLIT] (default: sample photographs)")
  parser.add_argument("--out", type=local, help="for everything that is written (default: out/NAME)")
  parser.add_argument("--limit", type=positive, help="only the first LIMIT images")
  parser.add_argument("--qualities", type=_numbers,
                      help='of a variable-rate checkpoint, as "1,2.5,6" (default: all whole ones)')
  parser.add_argument("--estimate", action="store_true", help="the likelihood estimate alone, without coding")
  coder_argument(parser, "tfc where it is installed, else numba")
  parser.add_argument("--progressive", action="store_true",
                      help="also PSNR and MS-SSIM over the bytes received, after 0, 1, ..., all slices of each file")
  skip_argument(parser, "each checkpoint a second time, without the elements that are predicted with a scale up to "
                        "SCALE")
  refine_arguments(parser, "each checkpoint a second time, with latents that are optimised for every picture and "
                           "quality, for so many steps, or so long, as 50s")
  parser.add_argument("--baselines", type=_names, default=baselines.DEFAULT, metavar="NAMES",
                      help=f"conventional codecs: all, none, or some of {','.join(baselines.BASELINES)} "
                           f"(default: {','.join(baselines.DEFAULT)})")
  parser.add_argument("--published", metavar="DATASET[:NAMES]",
                      help=f'published curves on {", ".join(published_curves.DATASETS)}: the best known, or some, '
                           'as in "kodak:MLIC++,VTM-17.0", or "kodak:all"')
  parser.add_argument("--anchor", help="curve that BD-rates are against (default: JPEG 4:2:0)")
  parser.add_argument("--bd-method", choices=bd_rate.BD_METHODS, default=bd_rate.BD_METHOD,
                      help="how points are joined for BD-rates (default: pchip; cubic is what the papers use)")
  parser.add_argument("--report-images", type=whole, default=6, metavar="N",
                      help="how many images report.html shows (default: 6)")
  parser.add_argument("--resume", action="store_true", help="continue: what OUT/measurements.jsonl has is not repeated")
  parser.add_argument("--workers", type=whole, default=0, metavar="N",
                      help="processes for baselines and metrics (default: none, everything in this one)")
  arguments = parser.parse_args(argv)
  if arguments.progressive and arguments.estimate:
    raise UserError("--progressive and --estimate: an estimate has no file that could arrive; wanted one of the two")
  check_refine(arguments)
  return arguments


def _names(text: str) -> tuple[str, ...]:
  return tuple(name.strip() for name in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
  try:
    numbers = sorted({float(each) for each in text.split(",")})
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r}; wanted numbers, as "1,2.5,6"') from None
  return tuple(int(each) if each.is_integer() else each for each in numbers)


def main(argv: list[str] | None = None, program: str = "eval.py") -> int:
  """Exit status: 0; 2 for what the user can mend; 1 for a file that decodes to another picture; 130 for Ctrl-C."""
  return outcome(lambda: evaluate(parse(argv, program), program), program,
                 f"{program}: interrupted; the same command with --resume continues")


def evaluate(arguments: argparse.Namespace, program: str) -> None:
  """The order of events. Until everything is measured only OUT/measurements.jsonl and OUT/pictures are written."""
  photographs = dataset.open_image_set(arguments.data, arguments.limit)
  conventional, missing = baselines.chosen(arguments.baselines)
  published = chosen_references(arguments.published)
  coder = rangecoder.choose(arguments.coder, order=("tfc", "numba"))  # that of the published results, where it is
  if not arguments.estimate:
    rangecoder.load_in_background(coder)
  loaded = [(path, mlic_jax.Codec.load(path, coder)) for path in arguments.ckpt]
  loaded = [(path, each) for path, codec in loaded for each in variants(codec, arguments)]
  codecs = [codec for _, codec in loaded]
  qualities = [chosen_qualities(codec, arguments.qualities) for codec in codecs]
  anchor = chosen_anchor(arguments.anchor, curve_names(loaded, conventional, published))
  out = arguments.out or Path("out") / codecs[0].name
  refuse_unwritable(out)
  if arguments.data and os.path.realpath(arguments.data) == os.path.realpath(out):
    raise UserError(f"--out {out} is the folder of the images; its plots would be among them the next time")

  def check(image: np.ndarray) -> None:
    for codec in codecs:
      check_size(codec, *image.shape[:2])

  pixels = dataset.survey(photographs, check)  # meets every image that cannot be coded before the work
  for line in missing:
    complain(f"{program}: {line}")

  journal = Journal(out / MEASUREMENTS, arguments.resume)
  workers = Processes(arguments.workers) if arguments.workers else InThisProcess()
  try:
    with progress_bar() as progress:
      measured = runner.evaluate_baselines(
          conventional, photographs, journal=journal, workers=workers,
          advance=counter(progress, "baselines", photographs.size * len(conventional)),
          left_out=lambda line: complain(f"{program}: left out {line}; without a curve, which would be of other "
                                         "images"))
      shown = dict(list(pixels.items())[:arguments.report_images])
      pictures = Pictures(out / "pictures", shown, conventional, runner.by_image(measured), arguments.resume)
      arriving = Arrivals(pixels, journal, workers) if arguments.progressive else None
      checkpoints, costs, drawn = [], [], []
      for (path, codec), each in zip(loaded, qualities):
        key = runner.codec_key(codec, arguments.estimate)
        lacks, seen = besides_results(codec, key, pictures, arriving)
        entries = runner.evaluate_codec(
            codec, each, photographs, estimated=arguments.estimate, journal=journal, workers=workers,
            advance=counter(progress, codec.name, photographs.size * len(each), codec), lacks=lacks, seen=seen,
            compiling=FirstPicture("refining" if runner.refines(codec) else "evaluating"))
        if arriving:
          entries = arriving.of_entries(entries, key)
        checkpoints.append((path, entries))
        costs.append(codec_cost.cost(codec.name, codec.config, entries, journal.first_run(key)))
        drawn += pictures.records(entries, key)
  finally:
    workers.shutdown(cancel_futures=True)

  about = {"data": photographs.title, "number_of_images": photographs.size, "estimate": arguments.estimate,
           "coder": None if arguments.estimate else coder, "skip": arguments.skip,
           "refine": arguments.refine, "device": jax.devices()[0].device_kind, "published": None}
  if published:
    name = arguments.published.partition(":")[0]
    about["published"] = {"dataset": name, "caution": published_curves.caution(name, photographs.size)}
  named, of_baselines = results.families(checkpoints), results.by_name(measured)
  compared = results.of_all_images(of_baselines, about)
  if arguments.anchor is None:
    anchor = chosen_anchor(None, [name for name, _ in [*named, *compared]] + [each.name for each in published])
  found = results.assemble(about, named, of_baselines, published, anchor=anchor, bd_method=arguments.bd_method,
                           costs=costs, pictures=drawn)
  title = f"{photographs.title}, {photographs.size} image{'s' * (photographs.size > 1)}"
  written = write(out, found, [*named, *compared], title, arguments.report_images > 0)
  if arriving:
    written += plot_arrivals(out, named, title)
  say(found, named, title, written)


def variants(codec: mlic_jax.Codec, arguments: argparse.Namespace) -> list[mlic_jax.Codec]:
  """A checkpoint as it is, and with each of --skip and --refine in turn added to that."""
  found = [codec]
  if arguments.skip is not None:
    found.append(found[-1].skipping(arguments.skip))
  if arguments.refine is not None:
    found.append(found[-1].refining(arguments.refine, arguments.lmbda))
  return found


def besides_results(codec, key: str, pictures: Pictures, arriving: Arrivals | None):
  """What is made of a coded picture besides its results: `lacks` and `seen` of sweep.evaluate_codec."""
  bits_of = functools.partial(bit_maps.bits_map, codec)
  beside = runner.codec_key(codec.plain, key.endswith(" estimated")) if runner.refines(codec) else None

  def lacks(name, quality):
    return pictures.lacks(key, name, quality) or (arriving is not None and arriving.lacks(key, name, quality))

  def seen(name, image, quality, coded):
    pictures.draw(key, name, image, quality, coded, bits_of, beside)
    if arriving:
      arriving.measure(codec, key, name, image, quality, coded)

  return lacks, seen


def write(out: Path, found: dict, named: list[tuple[str, list[dict]]], title: str, with_report: bool) -> list[Path]:
  """Everything but what was written along the way. The paths of it."""
  results.write_json(out / "results.json", found)
  results.write_csv(out / "results.csv", found)
  results.write_compressai(out / "compressai", named, title)
  written = [out / "results.json", out / "results.csv", out / "compressai"]
  for metric, stem in ("psnr", "rd"), ("ms_ssim", "rd_ms_ssim"):
    curves = plots.of_plot(results.read_curves(found, metric))
    for extension in ("png", "svg") if any(curve.kind == "checkpoint" for curve in curves) else ():
      plots.save_rd_plot(out / f"{stem}.{extension}", curves, title)
      written.append(out / f"{stem}.{extension}")
  if with_report:
    write_whole(out / "report.html", report.page(found, out / "pictures", title))
    written.append(out / "report.html")
  return written


def plot_arrivals(out: Path, named: list[tuple[str, list[dict]]], title: str) -> list[Path]:
  """OUT/progressive.png and .svg. The paths."""
  written, curves = [out / "progressive.png", out / "progressive.svg"], arrival_curves(named)
  for path in written:
    plots.save_rd_plot(path, curves, f"{title}, while the files arrive", "bits per pixel received")
  return written


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


def chosen_references(wanted: str | None) -> list[bd_rate.Curve]:
  """The published curves that --published asks for, in every metric."""
  if wanted is None:
    return []
  name, _, curves = wanted.partition(":")
  chosen = _names(curves) if curves else ()
  return [curve for metric in bd_rate.METRICS for curve in published_curves.chosen(name, chosen, metric)]


def check_size(codec, height: int, width: int) -> None:
  """An error of one line for a picture that cannot be coded, or not be refined."""
  if runner.refines(codec):
    codec.check(height, width)
  check_memory(codec.config, height, width)


def curve_names(loaded, conventional, published) -> list[str]:
  """What the curves will be called, before there are any."""
  stubs = [(path, [runner.of_entry(codec, codec.qualities[0])]) for path, codec in loaded]
  return [*(name for name, _ in results.families(stubs)), *(each.name for each in [*conventional, *published])]


def chosen_anchor(wanted: str | None, known: list[str]) -> str:
  """The curve that BD-rates are against, by its name in any case; by default the first there is of the usual ones."""
  if wanted is None:
    return next((name for name in (baselines.JPEG.name, "VTM-17.0", baselines.WEBP.name) if name in known), known[0])
  for name in known:
    if name.lower() == wanted.lower():
      return name
  raise UserError(f"--anchor: no curve {wanted!r}; there are {', '.join(dict.fromkeys(known))}")


def refuse_unwritable(out: Path) -> None:
  """Before the work rather than after it."""
  nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
  if not nearest.is_dir() or not os.access(nearest, os.W_OK):
    raise UserError(f"--out {out}: {nearest} is not a folder that can be written to")


def progress_bar() -> Progress:
  console = rich_console(stderr=True)
  return Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console, transient=True, disable=not console.is_terminal)


def counter(progress: Progress, description: str, total: int, codec=None):
  """What advances a bar; beside it stands how a refinement goes."""
  task = progress.add_task(escape(description), total=total)
  if codec is not None and runner.refines(codec):
    codec.progress = lambda done, loss: progress.update(task, description=escape(f"{description}, loss {loss:.4f}"))
  return lambda: progress.advance(task)
