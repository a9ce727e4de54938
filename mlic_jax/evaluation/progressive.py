"""Progressive decoding: bytes received and distortion after z, after one slice, after two, up to the complete file.

They are measured for every checkpoint, image and quality, on the same files as the results in runner.py.
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
  """Measures progressive decoding, and finds earlier measurements in the cache.

  Args:
    digests: of the images (results_cache.py), by name.
    cache: has earlier measurements, and takes new ones.
    workers: compute the distortions, as in image_metrics.py.
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
    """The entries of a checkpoint in results.json with "progressive" in every image, and "progressive_mean"."""
    extended = []
    for entry in entries:
      of_images = [self._measured(codec_key, image["name"], entry["quality"]) for image in entry["images"]]
      images = [{**image, "progressive": [dataclasses.asdict(each) for each in steps]}
                for image, steps in zip(entry["images"], of_images)]
      extended.append({**entry, "images": images, "progressive_mean": [mean(step) for step in zip(*of_images)]})
    return extended

  def _measured(self, codec_key: str, name: str, quality: float | None) -> list[ProgressiveResult]:
    found = self._cache.progressive(codec_key, self._digests[name], quality)
    assert found is not None  # `measure` added it
    return found


def measure_progressively(codec, name: str, image: np.ndarray, quality: float | None, coded: Coded,
                          workers: Executor) -> list[ProgressiveResult]:
  """The results of an image (H, W, 3) uint8 after 0, 1, ..., all slices of its file.

  Returns when all are measured: reconstructions of many images and qualities would not fit into memory.
  ReconstructionMismatch when the last reconstruction is not that of the complete file.
  """
  futures = []
  try:
    for received, decoded in codec.decode_progressively(coded.file):
      futures.append(workers.submit(compare, name, image, Coded(decoded, coded.file[:received], None, None, None)))
  except BitstreamError as error:
    raise ReconstructionMismatch(f"{name} at quality {quality}, slice by slice: {error}") from error
  if received != len(coded.file) or not np.array_equal(decoded, coded.reconstruction):
    raise ReconstructionMismatch(f"{name} at quality {quality}: decoded slice by slice, the whole file does not give "
                                 "the image that it gives at once")
  results = [future.result() for future in futures]
  bpp = lambda result: 8 * result.file_bytes / (result.height * result.width)
  return [ProgressiveResult(slices, result.file_bytes, bpp(result), result.psnr, result.ms_ssim)
          for slices, result in enumerate(results)]


def mean(of_images: Sequence[ProgressiveResult]) -> dict[str, float | None]:
  """Means over images of which equally many slices arrived, each counting once; MS-SSIM over those that have it."""
  figures: dict[str, float | None] = {"slices": of_images[0].slices}
  for field in "bytes", "bpp", "psnr", "ms_ssim":
    values = [value for each in of_images if (value := getattr(each, field)) is not None]
    figures[field] = float(np.mean(values)) if values else None
  return figures


def progressive_curves(named: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[Curve]:
  """PSNR over the bits received, one curve per checkpoint and quality, and dashed the curve of complete files.

  named: (name of a checkpoint or of a family of single rates, its entries).
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
