"""The evaluation of checkpoints that `mlic-jax eval` runs: the order of events, and the files that it writes."""
import argparse
import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

import mlic_jax
from mlic_jax.atomic_io import write_whole
from mlic_jax.coding import rangecoder
from mlic_jax.console import rich_console
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
from mlic_jax.evaluation.console_tables import show_results
from mlic_jax.evaluation.progressive import Arrivals, arrival_curves
from mlic_jax.evaluation.report_images import Pictures
from mlic_jax.evaluation.results_cache import Journal
from mlic_jax.evaluation.workers import InThisProcess, Processes
from mlic_jax.folder_lock import FolderLock

# bd_rate.py imports it late, after hours of work: where it is missing, that is said now. It imports matplotlib, which
# matplotlib_settings has to do first.
import bjontegaard  # isort: skip  # noqa: F401


class EvaluationError(ValueError):
  """An evaluation that cannot begin; one line with what came and what was wanted."""


def evaluate(arguments: argparse.Namespace, warn: Callable[[str], None],
             compilation_notice: Callable[[str], Callable[..., contextlib.AbstractContextManager]]) -> None:
  """Evaluates the checkpoints of `arguments` (see commands/evaluate.py), prints a table and writes all files.

  Until everything is measured, only OUT/measurements.jsonl and OUT/pictures are written.

  Args:
    arguments: of the command eval.
    warn: is called with a line for everything that is left out.
    compilation_notice: makes the context for the first run of an image size, from the verb for what is done.
  """
  photographs = dataset.open_image_set(arguments.data, arguments.limit, warn)
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
    raise EvaluationError(f"--out {out} is the folder of the images; its plots would be among them the next time")

  def check(image: np.ndarray) -> None:
    for codec in codecs:
      check_size(codec, *image.shape[:2])

  pixels = dataset.survey(photographs, check)  # before the work: every image that cannot be coded ends it
  for line in missing:
    warn(line)

  with FolderLock(out, "evaluation.lock", "evaluation", "--out") as lock:
    journal = Journal(out / MEASUREMENTS, arguments.resume)
    workers = Processes(arguments.workers) if arguments.workers else InThisProcess()
    try:
      with progress_bar() as progress:
        measured = runner.evaluate_baselines(
            conventional, photographs, journal=journal, workers=workers,
            advance=counter(progress, "baselines", photographs.size * len(conventional)),
            left_out=lambda line: warn(f"left out {line}; its curve is omitted, as it would be of other images"))
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
              compiling=compilation_notice("refining" if runner.refines(codec) else "evaluating"))
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
    lock.check()
    written = write(out, found, [*named, *compared], title, arguments.report_images > 0)
    if arriving:
      written += plot_arrivals(out, named, title)
  show_results(found, named, title, written)


def variants(codec: mlic_jax.Codec, arguments: argparse.Namespace) -> list[mlic_jax.Codec]:
  """A checkpoint as it is, and with each of --skip and --refine in turn added to that."""
  found = [codec]
  if arguments.skip is not None:
    found.append(found[-1].with_options(skip=arguments.skip))
  if arguments.refine is not None:
    found.append(found[-1].with_options(refine=arguments.refine, lmbda=arguments.lmbda))
  return found


def besides_results(codec, key: str, pictures: Pictures, arriving: Arrivals | None):
  """What is made of a coded picture besides its results: `lacks` and `seen` of sweep.evaluate_codec."""
  bits_of = functools.partial(bit_maps.bits_map, codec)
  plain = codec.with_options(refine=None)
  beside = runner.codec_key(plain, key.endswith(" estimated")) if runner.refines(codec) else None

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
    raise EvaluationError(f"--qualities: {codec.name} has a single rate; wanted a variable-rate checkpoint")
  lowest, highest = min(codec.qualities), max(codec.qualities)
  for quality in wanted:
    if not lowest <= quality <= highest:
      raise EvaluationError(f"--qualities: {quality}; {codec.name} has qualities from {lowest} to {highest}")
  return wanted


def chosen_references(wanted: str | None) -> list[bd_rate.Curve]:
  """The published curves that --published asks for, in every metric."""
  if wanted is None:
    return []
  name, _, curves = wanted.partition(":")
  chosen = tuple(each.strip() for each in curves.split(",")) if curves else ()
  return [curve for metric in bd_rate.METRICS for curve in published_curves.chosen(name, chosen, metric)]


def check_size(codec, height: int, width: int) -> None:
  """An error of one line for an image that cannot be coded, or whose latents cannot be optimized."""
  codec.check(height, width)


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
  raise EvaluationError(f"--anchor: no curve {wanted!r}; there are {', '.join(dict.fromkeys(known))}")


def refuse_unwritable(out: Path) -> None:
  """Before the work rather than after it."""
  nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
  if not nearest.is_dir() or not os.access(nearest, os.W_OK):
    raise EvaluationError(f"--out {out}: {nearest} is not a folder that can be written to")


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
