"""The evaluation of `mlic-jax eval`: its order of events, and the files that it writes."""
import argparse
import contextlib
import datetime
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
from mlic_jax.evaluation.progressive import ProgressiveResults, progressive_curves
from mlic_jax.evaluation.report_images import ReportImages
from mlic_jax.evaluation.results_cache import ResultsCache
from mlic_jax.evaluation.workers import SerialExecutor, WorkerPool
from mlic_jax.folder_lock import FolderLock
from mlic_jax.model.distributions import make_distribution
from mlic_jax.paths import is_remote
from mlic_jax.runtime.platforms import check_platforms

# bd_rate.py imports it late, after hours of work, so a missing package is reported here. It imports matplotlib, so
# matplotlib_settings comes first.
import bjontegaard  # isort: skip  # noqa: F401


class EvaluationError(ValueError):
  """The evaluation cannot begin; the message is one line with the given and the expected settings."""


def evaluate(arguments: argparse.Namespace, warn: Callable[[str], None],
             compilation_notice: Callable[[str], Callable[..., contextlib.AbstractContextManager]]) -> None:
  """Evaluates the checkpoints of `arguments`, prints tables and writes all files.

  Before all measurements are complete, it writes only OUT/measurements.jsonl and OUT/pictures.

  Args:
    arguments: the arguments of the command eval (commands/evaluate.py).
    warn: called with a line about everything that is left out.
    compilation_notice: called with the work in words; returns a function that makes contexts for runs that compile.
  """
  images = dataset.open_dataset(arguments.data, arguments.limit, warn)
  conventional, missing = baselines.select(arguments.baselines)
  published = select_published(arguments.published)
  coder = rangecoder.choose(arguments.coder, order=("tfc", "numba"))  # tfc is the coder of the published results
  check_platforms()
  if not arguments.estimate and all(is_remote(path) or os.path.exists(path) for path in arguments.ckpt):
    rangecoder.load_in_background(coder)  # otherwise the error would wait until the import ends
  load = lambda path: load_codec(path, coder, arguments)
  loaded = [(path, load(path)) for path in arguments.ckpt]
  loaded = [(path, each) for path, codec in loaded for each in codec_variants(codec, arguments)]
  codecs = [codec for _, codec in loaded]
  qualities = [select_qualities(codec, arguments.qualities) for codec in codecs]
  anchor = select_anchor(arguments.anchor, curve_names(loaded, conventional, published))
  out = arguments.out or Path("out") / codecs[0].name
  refuse_unwritable(out)
  if arguments.data and os.path.realpath(arguments.data) == os.path.realpath(out):
    raise EvaluationError(f"--out {out} is the folder of --data, and the next evaluation would read its plots as "
                          "images; wanted another folder")

  def check(image: np.ndarray) -> None:
    for codec in codecs:
      check_size(codec, *image.shape[:2])

  digests = dataset.check_images(images, check)  # an image that cannot be coded ends the evaluation before it begins
  for line in missing:
    warn(line)

  with FolderLock(out, "evaluation.lock", "evaluation", "--out") as lock:
    cache = ResultsCache(out / MEASUREMENTS, arguments.resume)
    workers = WorkerPool(arguments.workers) if arguments.workers else SerialExecutor()
    try:
      with progress_bar() as progress:
        measured = runner.evaluate_baselines(
            conventional, images, cache=cache, workers=workers,
            advance=progress_counter(progress, "baselines", images.size * len(conventional)),
            warn=lambda line: warn(f"{line}; its curve is omitted, because it would lack images"))
        shown = dict(list(digests.items())[:arguments.report_images])
        report_images = ReportImages(out / "pictures", shown, conventional, runner.by_image(measured), arguments.resume)
        progressive = ProgressiveResults(digests, cache, workers) if arguments.progressive else None
        checkpoints, costs, image_records = [], [], []
        for (path, codec), each in zip(loaded, qualities):
          key = runner.codec_key(codec, arguments.estimate)
          is_missing, on_coded = extra_measurements(codec, key, report_images, progressive)
          codec_cost.restart_peak_memory()
          entries = runner.evaluate_codec(
              codec, each, images, estimated=arguments.estimate, cache=cache, workers=workers,
              advance=progress_counter(progress, codec.name, images.size * len(each), codec), is_missing=is_missing,
              on_coded=on_coded,
              compiling=compilation_notice("latent optimization" if runner.optimizes_latents(codec) else "evaluating"))
          if progressive:
            entries = progressive.add_to(entries, key)
          checkpoints.append((path, entries))
          costs.append(codec_cost.cost(codec.name, codec.config, entries, cache.first_run(key)))
          image_records += report_images.records(entries, key)
    finally:
      workers.shutdown(cancel_futures=True)

    about = {"date": datetime.date.today().isoformat(), "version": mlic_jax.__version__,
             "data": images.title, "number_of_images": images.size, "estimate": arguments.estimate,
             "coder": None if arguments.estimate else coder, "skip": arguments.skip,
             "refine": arguments.refine, "device": jax.devices()[0].device_kind, "published": None}
    if published:
      name = arguments.published.partition(":")[0]
      about["published"] = {"dataset": name, "caution": published_curves.caution(name, images.size)}
    named, baseline_curves = results.families(checkpoints), results.by_name(measured)
    compared = results.complete_baselines(baseline_curves, about)
    if arguments.anchor is None:
      anchor = select_anchor(None, [name for name, _ in [*named, *compared]] + [each.name for each in published])
    found = results.assemble(about, named, baseline_curves, published, anchor=anchor, bd_method=arguments.bd_method,
                             costs=costs, pictures=image_records)
    title = f"{images.title}, {images.size} image{'s' * (images.size > 1)}"
    lock.check()
    written = write_files(out, found, [*named, *compared], title, arguments.report_images > 0)
    if progressive:
      written += plot_progressive(out, named, title)
  show_results(found, named, title, written)


def load_codec(path: Path, coder: str, arguments: argparse.Namespace) -> mlic_jax.Codec:
  """Loads a codec. It writes files that are not portable if its distribution has no portable files.

  Such a distribution may also need another coder than the default."""
  load = lambda coder: mlic_jax.Codec.load(path, coder, allow_custom_modules=arguments.allow_custom_modules)
  try:
    codec = load(coder)
  except rangecoder.CoderMissingError:
    if arguments.coder is not None:
      raise
    codec = load("numba")
  return codec.with_options(portable=False) if make_distribution(codec.config).not_portable else codec


def codec_variants(codec: mlic_jax.Codec, arguments: argparse.Namespace) -> list[mlic_jax.Codec]:
  """Returns a checkpoint without options, with --skip, and with --skip and --refine or --tile, as far as they are
  given."""
  found = [codec]
  if arguments.skip is not None:
    found.append(found[-1].with_options(skip=arguments.skip))
  if arguments.refine is not None:
    found.append(found[-1].with_options(refine=arguments.refine, lmbda=arguments.lmbda))
  if arguments.tile:
    found.append(found[-1].with_options(refine=None, tile=arguments.tile))
  return found


def extra_measurements(codec, key: str, report_images: ReportImages, progressive: ProgressiveResults | None):
  """Returns the callbacks `is_missing` and `on_coded` of runner.evaluate_codec, for the report and --progressive."""
  bits_of = functools.partial(bit_maps.bits_map, codec)
  plain = codec.with_options(refine=None)
  plain_key = runner.codec_key(plain, key.endswith(" estimated")) if runner.optimizes_latents(codec) else None

  def is_missing(name, quality):
    return report_images.is_missing(key, name, quality) or (
        progressive is not None and progressive.is_missing(key, name, quality))

  def on_coded(name, image, quality, coded):
    report_images.draw(key, name, image, quality, coded, bits_of, plain_key)
    if progressive:
      progressive.measure(codec, key, name, image, quality, coded)

  return is_missing, on_coded


def write_files(out: Path, found: dict, named: list[tuple[str, list[dict]]], title: str,
                with_report: bool) -> list[Path]:
  """Writes the files that need complete measurements; returns their paths."""
  results.write_json(out / "results.json", found)
  results.write_csv(out / "results.csv", found)
  results.write_compressai(out / "compressai", named, title)
  written = [out / "results.json", out / "results.csv", out / "compressai"]
  for metric, stem in ("psnr", "rd"), ("ms_ssim", "rd_ms_ssim"):
    curves = plots.curves_to_plot(results.read_curves(found, metric))
    for extension in ("png", "svg") if any(curve.kind == "checkpoint" for curve in curves) else ():
      plots.save_rd_plot(out / f"{stem}.{extension}", curves, title)
      written.append(out / f"{stem}.{extension}")
  if with_report:
    write_whole(out / "report.html", report.page(found, out / "pictures", title))
    written.append(out / "report.html")
  return written


def plot_progressive(out: Path, named: list[tuple[str, list[dict]]], title: str) -> list[Path]:
  """Writes OUT/progressive.png and .svg; returns their paths."""
  written, curves = [out / "progressive.png", out / "progressive.svg"], progressive_curves(named)
  for path in written:
    plots.save_rd_plot(path, curves, f"{title}, progressive decoding", "bits per pixel received")
  return written


def select_qualities(codec, wanted: tuple[float, ...] | None) -> tuple[float | None, ...]:
  """Returns the qualities to evaluate: all rate points, or those of --qualities. EvaluationError for invalid ones."""
  if wanted is None:
    return codec.qualities
  if codec.qualities == (None,):
    raise EvaluationError(f"--qualities: {codec.name} has a single rate; wanted a variable-rate checkpoint")
  lowest, highest = min(codec.qualities), max(codec.qualities)
  for quality in wanted:
    if not lowest <= quality <= highest:
      raise EvaluationError(f"--qualities: {quality}; {codec.name} has qualities from {lowest} to {highest}")
  return wanted


def select_published(wanted: str | None) -> list[bd_rate.Curve]:
  """Returns the published curves of --published, in every metric."""
  if wanted is None:
    return []
  name, _, curves = wanted.partition(":")
  names = tuple(each.strip() for each in curves.split(",")) if curves else ()
  return [curve for metric in bd_rate.METRICS for curve in published_curves.select(name, names, metric)]


def check_size(codec, height: int, width: int) -> None:
  """Raises MemoryLimitError, RefineError or TilingError for an image size that cannot be coded or optimized."""
  codec.check(height, width)


def curve_names(loaded, conventional, published) -> list[str]:
  """Returns the names of all curves before they are measured."""
  stubs = [(path, [runner.entry_fields(codec, codec.qualities[0])]) for path, codec in loaded]
  return [*(name for name, _ in results.families(stubs)), *(each.name for each in [*conventional, *published])]


def select_anchor(wanted: str | None, known: list[str]) -> str:
  """Returns the anchor of BD-rates: the curve of that name, ignoring case, or the first default that is known."""
  if wanted is None:
    return next((name for name in (baselines.JPEG.name, "VTM-17.0", baselines.WEBP.name) if name in known), known[0])
  for name in known:
    if name.lower() == wanted.lower():
      return name
  raise EvaluationError(f"--anchor: no curve {wanted!r}; wanted one of {', '.join(dict.fromkeys(known))}")


def refuse_unwritable(out: Path) -> None:
  """Raises EvaluationError if the folder cannot be written to."""
  nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
  if not nearest.is_dir() or not os.access(nearest, os.W_OK):
    raise EvaluationError(f"--out {out}: {nearest} is not a writable folder")


def progress_bar() -> Progress:
  console = rich_console(stderr=True)
  return Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console, transient=True, disable=not console.is_terminal)


def progress_counter(progress: Progress, description: str, total: int, codec=None) -> Callable[[], None]:
  """Adds a bar to `progress` and returns a function that advances it; the bar shows the loss of latent optimization."""
  task = progress.add_task(escape(description), total=total)
  if codec is not None and runner.optimizes_latents(codec):
    codec.progress = lambda done, loss: progress.update(task, description=escape(f"{description}, loss {loss:.4f}"))
  return lambda: progress.advance(task)
