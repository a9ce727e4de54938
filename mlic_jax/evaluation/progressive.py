"""What a receiver sees of a picture while its file arrives: bytes and distortion after z, after one slice, after two.

Of every checkpoint, image and quality, beside the figures of the complete file (sweep.py), and of the same file.
"""
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.evaluation.bd_rate import Curve
from mlic_jax.evaluation.image_metrics import Arrived, Coded, ReconstructionMismatch, compare
from mlic_jax.evaluation.results_cache import Journal


class Arrivals:
  """Measures them and finds them again in the journal.

  Args:
    pixels: digests (journal.py) of the images, by name.
    journal: has what was measured before.
    workers: compute the distortions, as in measure.py.
  """

  def __init__(self, pixels: Mapping[str, str], journal: Journal, workers: Executor):
    self._pixels, self._journal, self._workers = pixels, journal, workers

  def lacks(self, codec_key: str, name: str, quality: float | None) -> bool:
    """Whether the file of an image has still to arrive."""
    return self._journal.arrivals(codec_key, self._pixels[name], quality) is None

  def measure(self, codec, codec_key: str, name: str, image: np.ndarray, quality: float | None, coded: Coded) -> None:
    """Measures one image at one quality, if that is lacking."""
    if self.lacks(codec_key, name, quality):
      self._journal.add_arrivals(codec_key, self._pixels[name], quality,
                                 arrive(codec, name, image, quality, coded, self._workers))

  def of_entries(self, entries: Sequence[dict[str, Any]], codec_key: str) -> list[dict[str, Any]]:
    """The entries of a checkpoint in results.json with "progressive" in every image, and "progressive_mean"."""
    extended = []
    for entry in entries:
      arrivals = [self._measured(codec_key, image["name"], entry["quality"]) for image in entry["images"]]
      images = [{**image, "progressive": [dataclasses.asdict(each) for each in steps]}
                for image, steps in zip(entry["images"], arrivals)]
      extended.append({**entry, "images": images, "progressive_mean": [mean(step) for step in zip(*arrivals)]})
    return extended

  def _measured(self, codec_key: str, name: str, quality: float | None) -> list[Arrived]:
    found = self._journal.arrivals(codec_key, self._pixels[name], quality)
    assert found is not None  # `measure` added it
    return found


def arrive(codec, name: str, image: np.ndarray, quality: float | None, coded: Coded,
           workers: Executor) -> list[Arrived]:
  """An image (H, W, 3) uint8 after 0, 1, ..., all slices of its file.

  Returns when all are measured: the pictures of many images and qualities would not fit into memory.
  ReconstructionMismatch when the last picture is not that of the complete file.
  """
  futures = []
  try:
    for received, picture in codec.decode_progressively(coded.file):
      futures.append(workers.submit(compare, name, image, Coded(picture, coded.file[:received], None, None, None)))
  except BitstreamError as error:
    raise ReconstructionMismatch(f"{name} at quality {quality}, slice by slice: {error}") from error
  if received != len(coded.file) or not np.array_equal(picture, coded.reconstruction):
    raise ReconstructionMismatch(f"{name} at quality {quality}: decoded slice by slice, the whole file does not give "
                                 "the picture that it gives at once")
  results = [future.result() for future in futures]
  bpp = lambda result: 8 * result.file_bytes / (result.height * result.width)
  return [Arrived(slices, result.file_bytes, bpp(result), result.psnr, result.ms_ssim)
          for slices, result in enumerate(results)]


def mean(arrived: Sequence[Arrived]) -> dict[str, float | None]:
  """Of images of which equally many slices have arrived, each counting once; MS-SSIM over those that have it."""
  figures: dict[str, float | None] = {"slices": arrived[0].slices}
  for field in "bytes", "bpp", "psnr", "ms_ssim":
    values = [value for each in arrived if (value := getattr(each, field)) is not None]
    figures[field] = float(np.mean(values)) if values else None
  return figures


def arrival_curves(named: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[Curve]:
  """PSNR over the bits received, a curve per checkpoint and quality, and dashed what complete files of them give.

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
