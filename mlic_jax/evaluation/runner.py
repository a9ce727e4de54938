"""All images through a checkpoint or the baselines: what the journal lacks is measured, the rest is read from it.

The results are entries of results.json: {"name", "quality", "config", ..., "images", "mean"}, one per quality.
"""
import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import PIL

from mlic_jax.coding.background_compile import decoder_compiled_beside
from mlic_jax.evaluation import image_metrics
from mlic_jax.evaluation.baselines import Baseline
from mlic_jax.evaluation.dataset import ImageSet
from mlic_jax.evaluation.image_metrics import ImageResult
from mlic_jax.evaluation.results_cache import Journal, digest
from mlic_jax.evaluation.workers import InThisProcess


def _nothing(*_) -> None:
  """For who wants no progress bar, and nothing but results."""


def _never(*_) -> bool:
  """For who wants no image coded whose results are known."""
  return False


def refines(codec) -> bool:
  """Whether a codec optimizes latents."""
  return codec.options.refine is not None


def codec_key(codec, estimated: bool = False) -> str:
  """What results of a checkpoint are filed under: two trainings of one name differ, and so does what is refined."""
  refined = " refined" if refines(codec) else ""
  return f"{codec.name} {codec.fingerprint.hex()}{refined}{' estimated' if estimated else ''}"


def baseline_key(baseline: Baseline) -> str:
  return f"{baseline.name} of Pillow {PIL.__version__}"


def how_refined(codec, quality: float | None) -> dict[str, Any] | None:
  """What results.json says of a codec that refines: which one, how long, for which objective; None of any other."""
  if not refines(codec):
    return None
  distortion, lmbda = codec.objective(quality)
  return {"plain": codec.with_options(refine=None).name, "budget": str(codec.options.refine), "distortion": distortion,
          "lmbda": lmbda}


def of_entry(codec, quality: float | None) -> dict[str, Any]:
  """The fields of an entry that say what was measured."""
  return {"name": codec.name, "plain_name": codec.model_name, "quality": quality, "config": codec.config.to_dict(),
          "skip": codec.options.skip, "refine": how_refined(codec, quality)}


def evaluate_codec(codec, qualities: Sequence[float | None], photographs: ImageSet, *, estimated: bool = False,
                   journal: Journal | None = None, workers=None, advance: Callable[[], None] = _nothing,
                   lacks: Callable[[str, float | None], bool] = _never,
                   seen: Callable[[str, np.ndarray, float | None, image_metrics.Coded], None] = _nothing,
                   compiling: Callable[..., contextlib.AbstractContextManager] = lambda *_: contextlib.nullcontext(),
                   ) -> list[dict[str, Any]]:
  """One entry per quality. `advance` is called after each image and quality.

  A padded size for which nothing is compiled is run once before it is timed; what refines, by a single step.
  seen(name, image, quality, coded) is called with what is coded here; lacks(name, quality) has an image coded although
  its results are known. The run that compiles is inside of compiling(codec, height, width).
  """
  journal, workers = journal or Journal(), workers or InThisProcess()
  key = codec_key(codec, estimated)

  def submit(name, image, missing):
    if not estimated and not codec.has_compiled(*image.shape[:2]):
      with compiling(codec, *image.shape[:2]), decoder_compiled_beside(codec, *image.shape[:2]):
        short = codec.with_options(refine=codec.options.refine.one_step()) if refines(codec) else codec
        first = image_metrics.code(short, name, image, qualities[0])
      journal.add_first_run(key, {"height": image.shape[0], "width": image.shape[1],
                                  "encode_s": first.encode_s, "decode_s": first.decode_s})
    return image_metrics.measure_codec(codec, name, image, missing, estimated=estimated, workers=workers,
                                 seen=lambda quality, coded: seen(name, image, quality, coded))

  def done(count: int) -> None:
    for _ in range(count):
      advance()

  results: dict[float | None, list[ImageResult]] = {quality: [] for quality in qualities}
  for _, of_image in _measured([(key, qualities, submit)], photographs, journal, workers, done, lacks):
    for quality in qualities:
      results[quality].append(of_image[quality])
  return [_entry(results[quality], **of_entry(codec, quality)) for quality in qualities]


def evaluate_baselines(baselines: Sequence[Baseline], photographs: ImageSet, *, journal: Journal | None = None,
                       workers=None, advance: Callable[[], None] = _nothing,
                       left_out: Callable[[str], None] = _nothing) -> list[dict[str, Any]]:
  """One entry per baseline and quality. `advance` is called after each image and baseline.

  An image that a baseline cannot hold is missing in its entries, and left_out(line) says so; one that can hold none has
  no entries.
  """
  journal, workers = journal or Journal(), workers or InThisProcess()

  def source(baseline):
    submit = lambda name, image, missing: workers.submit(image_metrics.measure_baseline, baseline, name, image, missing)
    return baseline_key(baseline), baseline.qualities, submit

  results: dict[tuple[int, float | None], list[ImageResult]] = collections.defaultdict(list)
  for index, of_image in _measured([source(each) for each in baselines], photographs, journal, workers,
                                   lambda count: advance(), left_out=left_out):
    for quality, result in of_image.items():
      results[index, quality].append(result)
  return [_entry(results[index, quality], name=baseline.name, quality=quality, config=None)
          for index, baseline in enumerate(baselines) for quality in baseline.qualities if results[index, quality]]


def _measured(sources, photographs: ImageSet, journal: Journal, workers, advance: Callable[[int], None],
              lacks: Callable = _never, left_out: Callable[[str], None] = _nothing,
              ) -> Iterator[tuple[int, dict[float | None, ImageResult]]]:
  """(index of the source, results by quality) of every image through every source, in order; none for an image that the
  source cannot hold.

  sources: (key in the journal, qualities, submit), where submit(name, image, qualities) gives a future of the results,
  or a list of futures. As much as `workers` want is under way before the first is waited for.
  """
  waiting: collections.deque[tuple] = collections.deque()

  def collect():
    index, name, pixels, missing, submitted = waiting.popleft()
    key, qualities, _ = sources[index]
    if missing:
      try:
        found = submitted.result() if isinstance(submitted, Future) else [each.result() for each in submitted]
      except image_metrics.BaselineLimit as error:
        left_out(str(error))
        advance(len(qualities))
        return index, {}
      journal.add(key, pixels, dict(zip(missing, found)))
    advance(len(qualities))
    known = journal.results(key, pixels)
    # The name is that of today: the journal knows images by their pixels.
    return index, {quality: dataclasses.replace(known[quality], name=name) for quality in qualities}

  for name, image in photographs.read():
    pixels = digest(image)
    for index, (key, qualities, submit) in enumerate(sources):
      known = journal.results(key, pixels)
      missing = [quality for quality in qualities if quality not in known or lacks(name, quality)]
      waiting.append((index, name, pixels, missing, submit(name, image, missing) if missing else []))
      while len(waiting) > workers.in_flight:
        yield collect()
  while waiting:
    yield collect()


def by_image(entries: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[float | None, ImageResult]]:
  """Results of the entries by (name of the codec, name of the image), and by quality."""
  results: dict[tuple[str, str], dict[float | None, ImageResult]] = collections.defaultdict(dict)
  for entry in entries:
    for image in entry["images"]:
      results[entry["name"], image["name"]][entry["quality"]] = ImageResult(**image)
  return dict(results)


def _entry(results: list[ImageResult], **fields) -> dict[str, Any]:
  return {**fields, "images": [dataclasses.asdict(result) for result in results], "mean": image_metrics.mean(results)}
