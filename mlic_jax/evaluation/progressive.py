"""Progressive decoding: bytes received and distortion after z and 0, 1, ..., all slices.

The measurements use the same files as runner.py, for each checkpoint, image and quality.
"""
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.evaluation.bd_rate import Curve
from mlic_jax.evaluation.image_metrics import Coded, ProgressiveResult, ReconstructionMismatch, compare
from mlic_jax.evaluation.results_cache import ResultsCache


class ProgressiveResults:
  """Measures progressive decoding, unless the cache has earlier measurements.

  Args:
    digests: digests of the images by name (results_cache.py).
    cache: earlier measurements; new ones are added.
    workers: the Executor that computes distortions, as in image_metrics.py.
  """

  def __init__(self, digests: Mapping[str, str], cache: ResultsCache, workers: Executor):
    self._digests, self._cache, self._workers = digests, cache, workers

  def is_missing(self, codec_key: str, name: str, quality: float | None) -> bool:
    """Whether an image has not been measured yet."""
    return self._cache.progressive(codec_key, self._digests[name], quality) is None

  def measure(self, codec, codec_key: str, name: str, image: np.ndarray, quality: float | None, coded: Coded) -> None:
    """Measures one image at one quality, unless the cache has it."""
    if self.is_missing(codec_key, name, quality):
      self._cache.add_progressive(codec_key, self._digests[name], quality,
                                  measure_progressively(codec, name, image, quality, coded, self._workers))

  def add_to(self, entries: Sequence[dict[str, Any]], codec_key: str) -> list[dict[str, Any]]:
    """Adds "progressive" to each image, and "progressive_mean", to the entries of a checkpoint in results.json."""
    extended = []
    for entry in entries:
      measured = [self._measured(codec_key, image["name"], entry["quality"]) for image in entry["images"]]
      images = [{**image, "progressive": [dataclasses.asdict(each) for each in steps]}
                for image, steps in zip(entry["images"], measured)]
      extended.append({**entry, "images": images, "progressive_mean": [mean(step) for step in zip(*measured)]})
    return extended

  def _measured(self, codec_key: str, name: str, quality: float | None) -> list[ProgressiveResult]:
    found = self._cache.progressive(codec_key, self._digests[name], quality)
    assert found is not None  # `measure` added it
    return found


def measure_progressively(codec, name: str, image: np.ndarray, quality: float | None, coded: Coded,
                          workers: Executor) -> list[ProgressiveResult]:
  """Measures an image (H, W, 3) uint8 after 0, 1, ..., all slices of its file.

  It waits for all results, because reconstructions of many images and qualities would not fit into memory.
  ReconstructionMismatch if the last reconstruction differs from that of the complete file.
  """
  futures = []
  try:
    for received, decoded in codec.decode_progressively(coded.file):
      futures.append(workers.submit(compare, name, image, Coded(decoded, coded.file[:received], None, None, None)))
  except BitstreamError as error:
    raise ReconstructionMismatch(f"{name} at quality {quality}, slice by slice: {error}") from error
  if received != len(coded.file) or not np.array_equal(decoded, coded.reconstruction):
    raise ReconstructionMismatch(f"{name} at quality {quality}: progressive decoding of the complete file gives "
                                 "another image than decoding it at once")
  results = [future.result() for future in futures]
  bpp = lambda result: 8 * result.file_bytes / (result.height * result.width)
  return [ProgressiveResult(slices, result.file_bytes, bpp(result), result.psnr, result.ms_ssim)
          for slices, result in enumerate(results)]


def mean(results: Sequence[ProgressiveResult]) -> dict[str, float | None]:
  """Averages results of images with the same number of received slices; MS-SSIM over images that have it."""
  figures: dict[str, float | None] = {"slices": results[0].slices}
  for field in "bytes", "bpp", "psnr", "ms_ssim":
    values = [value for each in results if (value := getattr(each, field)) is not None]
    figures[field] = float(np.mean(values)) if values else None
  return figures


def progressive_curves(named: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[Curve]:
  """Returns a curve of PSNR over received bits for each checkpoint and quality, and dashed curves of complete files.

  named: (name of a checkpoint or a family of single-rate checkpoints, its entries).
  """
  curves: list[Curve] = []
  for name, entries in named:
    prefix = f"{name}, " if len(named) > 1 else ""
    complete = Curve.of(entries, "published", name=f"{prefix}complete files")
    curves += [complete] if complete is not None and len(entries) > 1 else []
    for entry in entries:
      label = entry["name"] if entry["quality"] is None else f"{prefix}quality {entry['quality']:g}"
      bpp, db = np.array([(each["bpp"], each["psnr"]) for each in entry["progressive_mean"]]).T
      curves.append(Curve(label, bpp, db))
  return curves
