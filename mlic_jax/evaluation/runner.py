"""Evaluates checkpoints and baselines on all images. Cached results are not measured again.

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

from mlic_jax.coding.background_compile import decoder_compiled_in_background
from mlic_jax.evaluation import image_metrics
from mlic_jax.evaluation.baselines import Baseline
from mlic_jax.evaluation.dataset import Dataset
from mlic_jax.evaluation.image_metrics import ImageResult
from mlic_jax.evaluation.results_cache import ResultsCache, digest
from mlic_jax.evaluation.workers import SerialExecutor


def _nothing(*_) -> None:
  """Does nothing: the default of callbacks."""


def _never(*_) -> bool:
  """Returns False: the default of `is_missing`."""
  return False


def optimizes_latents(codec) -> bool:
  """Whether a codec uses latent optimization."""
  return codec.options.refine is not None


def codec_key(codec, estimated: bool = False) -> str:
  """Returns the key of a checkpoint in the cache; it differs for trainings of one name and for latent optimization."""
  refined = " refined" if optimizes_latents(codec) else ""
  return f"{codec.name} {codec.fingerprint.hex()}{refined}{' estimated' if estimated else ''}"


def baseline_key(baseline: Baseline) -> str:
  return f"{baseline.name} of Pillow {PIL.__version__}"


def optimization_record(codec, quality: float | None) -> dict[str, Any] | None:
  """Returns the field "refine" of results.json: codec without latent optimization, budget and objective; or None."""
  if not optimizes_latents(codec):
    return None
  distortion, lmbda = codec.objective(quality)
  return {"plain": codec.with_options(refine=None).name, "budget": str(codec.options.refine), "distortion": distortion,
          "lmbda": lmbda}


def entry_fields(codec, quality: float | None) -> dict[str, Any]:
  """Returns the fields of an entry that describe the codec."""
  return {"name": codec.name, "plain_name": codec.model_name, "fingerprint": codec.fingerprint.hex(),
          "quality": quality, "config": codec.config.to_dict(), "skip": codec.options.skip,
          "refine": optimization_record(codec, quality)}


def evaluate_codec(codec, qualities: Sequence[float | None], images: Dataset, *, estimated: bool = False,
                   cache: ResultsCache | None = None, workers=None, advance: Callable[[], None] = _nothing,
                   is_missing: Callable[[str, float | None], bool] = _never,
                   on_coded: Callable[[str, np.ndarray, float | None, image_metrics.Coded], None] = _nothing,
                   compiling: Callable[..., contextlib.AbstractContextManager] = lambda *_: contextlib.nullcontext(),
                   ) -> list[dict[str, Any]]:
  """Evaluates a checkpoint; returns one entry per quality.

  Before an image of a new size is timed, it runs once to compile, with a single step of latent optimization.

  Args:
    codec: mlic_jax.Codec, or an object with its methods.
    qualities: the qualities of the codec to evaluate.
    images: the dataset.
    estimated: whether rates are estimated by likelihoods, without coding.
    cache: earlier results; new ones are added.
    workers: the Executor that computes distortions, as in image_metrics.py.
    advance: called after each image and quality.
    is_missing: called with (name, quality) of an image with cached results; if it returns True, the image is coded
      again.
    on_coded: called with (name, image, quality, coded) for each coded image.
    compiling: called with (codec, height, width); returns a context for the run that compiles.
  """
  cache, workers = cache or ResultsCache(), workers or SerialExecutor()
  key = codec_key(codec, estimated)

  def submit(name, image, missing):
    if not estimated and not codec.has_compiled(*image.shape[:2]):
      with compiling(codec, *image.shape[:2]), decoder_compiled_in_background(codec, *image.shape[:2]):
        short = codec.with_options(refine=codec.options.refine.one_step()) if optimizes_latents(codec) else codec
        first = image_metrics.code(short, name, image, qualities[0])
      cache.add_first_run(key, {"height": image.shape[0], "width": image.shape[1],
                                  "encode_s": first.encode_s, "decode_s": first.decode_s})
    return image_metrics.measure_codec(codec, name, image, missing, estimated=estimated, workers=workers,
                                       on_coded=lambda quality, coded: on_coded(name, image, quality, coded))

  def done(count: int) -> None:
    for _ in range(count):
      advance()

  results: dict[float | None, list[ImageResult]] = {quality: [] for quality in qualities}
  for _, image_results in _measure([(key, qualities, submit)], images, cache, workers, done, is_missing):
    for quality in qualities:
      results[quality].append(image_results[quality])
  return [_entry(results[quality], **entry_fields(codec, quality)) for quality in qualities]


def evaluate_baselines(baselines: Sequence[Baseline], images: Dataset, *, cache: ResultsCache | None = None,
                       workers=None, advance: Callable[[], None] = _nothing,
                       warn: Callable[[str], None] = _nothing) -> list[dict[str, Any]]:
  """Evaluates baselines; returns one entry per baseline and quality. `advance` is called after each image and baseline.

  If a baseline cannot encode an image, its entries lack the image, and `warn` is called with a line. A baseline that
  encodes no image has no entries.
  """
  cache, workers = cache or ResultsCache(), workers or SerialExecutor()

  def source(baseline):
    submit = lambda name, image, missing: workers.submit(image_metrics.measure_baseline, baseline, name, image, missing)
    return baseline_key(baseline), baseline.qualities, submit

  results: dict[tuple[int, float | None], list[ImageResult]] = collections.defaultdict(list)
  for index, image_results in _measure([source(each) for each in baselines], images, cache, workers,
                                       lambda count: advance(), warn=warn):
    for quality, result in image_results.items():
      results[index, quality].append(result)
  return [_entry(results[index, quality], name=baseline.name, quality=quality, config=None)
          for index, baseline in enumerate(baselines) for quality in baseline.qualities if results[index, quality]]


def _measure(sources, images: Dataset, cache: ResultsCache, workers, advance: Callable[[int], None],
             is_missing: Callable = _never, warn: Callable[[str], None] = _nothing,
             ) -> Iterator[tuple[int, dict[float | None, ImageResult]]]:
  """Yields (index of the source, results by quality) for each image and source, in order.

  There are no results for an image that the source cannot encode. Up to `workers.in_flight` tasks are submitted before
  it waits for the first.

  sources: (key in the cache, qualities, submit), where submit(name, image, qualities) returns a future of the results,
    or a list of futures.
  """
  waiting: collections.deque[tuple] = collections.deque()

  def collect():
    index, name, pixels, missing, submitted = waiting.popleft()
    key, qualities, _ = sources[index]
    if missing:
      try:
        found = submitted.result() if isinstance(submitted, Future) else [each.result() for each in submitted]
      except image_metrics.BaselineLimit as error:
        warn(str(error))
        advance(len(qualities))
        return index, {}
      cache.add(key, pixels, dict(zip(missing, found)))
    advance(len(qualities))
    known = cache.results(key, pixels)
    # The cache finds images by their pixels and may have another name for them.
    return index, {quality: dataclasses.replace(known[quality], name=name) for quality in qualities}

  for name, image in images.read():
    pixels = digest(image)
    for index, (key, qualities, submit) in enumerate(sources):
      known = cache.results(key, pixels)
      missing = [quality for quality in qualities if quality not in known or is_missing(name, quality)]
      waiting.append((index, name, pixels, missing, submit(name, image, missing) if missing else []))
      while len(waiting) > workers.in_flight:
        yield collect()
  while waiting:
    yield collect()


def by_image(entries: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[float | None, ImageResult]]:
  """Groups the results of entries by (name of the codec, name of the image) and by quality."""
  results: dict[tuple[str, str], dict[float | None, ImageResult]] = collections.defaultdict(dict)
  for entry in entries:
    for image in entry["images"]:
      results[entry["name"], image["name"]][entry["quality"]] = ImageResult(**image)
  return dict(results)


def _entry(results: list[ImageResult], **fields) -> dict[str, Any]:
  return {**fields, "images": [dataclasses.asdict(result) for result in results], "mean": image_metrics.mean(results)}
