"""Rate and distortion: of one image, of the mean of many, and of one curve against another.

A codec here is `mlic_jax.Codec`, or anything with its `encode_with_reconstruction`, `decode` and `estimate`.
"""
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import bjontegaard
import numpy as np
from scipy.interpolate import PchipInterpolator

from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.evaluation.baselines import BASELINES, Baseline, decode
from mlic_jax.evaluation.data import Photographs
from mlic_jax.evaluation.metrics import ms_ssim_8bit, psnr
from mlic_jax.images import ImageError

# Piecewise cubic, as in the common test conditions of JVET; a single cubic would miss points of a wide sweep.
BD_METHOD = "pchip"
BD_MIN_OVERLAP = 0.5   # of the PSNR range of the tested curve: less of it says little about the rest


class ReconstructionMismatch(ValueError):
  """A file does not decode to the picture that its encoder predicted."""


@dataclasses.dataclass(frozen=True)
class ImageResult:
  """One image through one codec at one quality. The fields of results.json, in its order."""
  name: str
  height: int
  width: int
  bytes: int | None                # of the complete file; None when the rate is only estimated
  bpp: float | None                # 8 * bytes / (height * width)
  bpp_estimated: float | None      # by the likelihood of the model; None for JPEG and WebP
  psnr: float                      # dB, 8-bit RGB
  ms_ssim: float | None            # None below 176 pixels, see metrics.py
  encode_s: float | None
  decode_s: float | None


def evaluate_image(codec, name: str, image: np.ndarray, quality: float | None) -> ImageResult:
  """Encodes and decodes (H, W, 3) uint8; rate of the complete file, distortion of the decoded picture.

  encode_s contains the synthesis of the encoder's own reconstruction. ReconstructionMismatch when decoding
  gives another picture.
  """
  blob, decoded, encode_s, decode_s = _code(codec, name, image, quality)
  bits, _ = codec.estimate(image, quality)
  return _result(name, image, decoded, len(blob), bits, encode_s, decode_s)


def _code(codec, name, image, quality) -> tuple[bytes, np.ndarray, float, float]:
  """The file, the decoded picture, and the seconds that each took."""
  start = time.perf_counter()
  try:
    blob, reconstruction = codec.encode_with_reconstruction(image, quality)
    encoded = time.perf_counter()
    decoded = codec.decode(blob)
  except BitstreamError as error:
    raise ReconstructionMismatch(f"{name} at quality {quality}: {error}") from error
  end = time.perf_counter()
  if decoded.shape != reconstruction.shape:
    raise ReconstructionMismatch(f"{name} at quality {quality}: decodes to {decoded.shape}; "
                                 f"the encoder predicted {reconstruction.shape}")
  if not np.array_equal(decoded, reconstruction):
    share = np.mean(np.any(decoded != reconstruction, axis=-1))
    raise ReconstructionMismatch(f"{name} at quality {quality}: {share:.2%} of the decoded pixels "
                                 "are not those that the encoder predicted")
  return blob, decoded, encoded - start, end - encoded


def estimate_image(codec, name: str, image: np.ndarray, quality: float | None) -> ImageResult:
  """The likelihood estimate for (H, W, 3) uint8: no file, so no bytes and no times."""
  bits, reconstruction = codec.estimate(image, quality)
  return _result(name, image, reconstruction, None, bits, None, None)


def evaluate_baseline(baseline: Baseline, name: str, image: np.ndarray, quality: int) -> ImageResult:
  """JPEG or WebP on the same terms; ImageError when it cannot hold the image (WebP: 16383 pixels a side)."""
  start = time.perf_counter()
  try:
    blob = baseline.encode(image, quality)
  except (OSError, ValueError) as error:
    height, width = image.shape[:2]
    raise ImageError(f"{name}: {baseline.name} cannot hold {width}x{height} pixels ({error})") from error
  encoded = time.perf_counter()
  decoded = decode(blob)
  end = time.perf_counter()
  return _result(name, image, decoded, len(blob), None, encoded - start, end - encoded)


def _result(name, image, reconstruction, size, bits, encode_s, decode_s) -> ImageResult:
  height, width = image.shape[:2]
  num_pixels = height * width                            # of the image, not of its padded version
  return ImageResult(name, height, width, size, None if size is None else 8 * size / num_pixels,
                     None if bits is None else float(bits) / num_pixels,
                     psnr(image, reconstruction), ms_ssim_8bit(image, reconstruction), encode_s, decode_s)


def mean(results: Sequence[ImageResult]) -> dict[str, float | None]:
  """Mean over images of every figure, each image counting once; over those that have it, None if none has."""
  fields = ("bytes", "bpp", "bpp_estimated", "psnr", "ms_ssim", "encode_s", "decode_s")
  columns = {field: [value for result in results if (value := getattr(result, field)) is not None]
             for field in fields}
  return {field: float(np.mean(values)) if values else None for field, values in columns.items()}


def _nothing() -> None:
  """For who wants no progress bar."""


def evaluate_codec(codec, qualities: Sequence[float | None], photographs: Photographs, *,
                   estimate: bool = False, advance: Callable[[], None] = _nothing) -> list[dict[str, Any]]:
  """One entry of results.json per quality. `advance` is called after each image and quality.

  Every new padded size is run once before it is timed: that run compiles.
  """
  measure = estimate_image if estimate else evaluate_image
  results = {quality: [] for quality in qualities}
  compiled = set()
  for name, image in photographs.read():
    blocks = tuple(-(-side // 64) for side in image.shape[:2])
    if not estimate and blocks not in compiled:
      evaluate_image(codec, name, image, qualities[0])
      compiled.add(blocks)
    for quality in qualities:
      results[quality].append(measure(codec, name, image, quality))
      advance()
  config = codec.config.to_dict()
  return [_entry(codec.name, quality, config, results[quality]) for quality in qualities]


def evaluate_baselines(photographs: Photographs,
                       advance: Callable[[], None] = _nothing) -> list[dict[str, Any]]:
  """One entry of results.json per baseline and quality. `advance` is called after each image."""
  points = [(baseline, quality) for baseline in BASELINES for quality in baseline.qualities]
  results = {point: [] for point in points}
  for name, image in photographs.read():
    for baseline, quality in points:
      results[baseline, quality].append(evaluate_baseline(baseline, name, image, quality))
    advance()
  return [_entry(baseline.name, quality, None, results[baseline, quality]) for baseline, quality in points]


def _entry(name: str, quality: float | None, config: dict | None,
           results: list[ImageResult]) -> dict[str, Any]:
  return {"name": name, "quality": quality, "config": config,
          "images": [dataclasses.asdict(result) for result in results], "mean": mean(results)}


class Curve(NamedTuple):
  """PSNR over rate, both means over the images, one point a quality, rising in rate."""
  name: str
  bpp: np.ndarray
  psnr: np.ndarray

  @classmethod
  def of(cls, entries: Sequence[dict[str, Any]]) -> "Curve":
    """From the entries of one codec, by the bytes of the files, or by the estimate where there are none."""
    means = [entry["mean"] for entry in entries]
    rate = "bpp_estimated" if means[0]["bpp"] is None else "bpp"
    return cls(entries[0]["name"], *np.array(sorted((each[rate], each["psnr"]) for each in means)).T)

  def psnr_at(self, bpp: float) -> float | None:
    """Interpolated over log(bpp); None outside the curve, and where the curve has but one point."""
    if len(self.bpp) < 2 or not np.all(np.diff(self.bpp) > 0) or not self.bpp[0] <= bpp <= self.bpp[-1]:
      return None
    return float(PchipInterpolator(np.log(self.bpp), self.psnr)(np.log(bpp)))


def bd_rate(curve: Curve, anchor: Curve) -> dict[str, Any]:
  """By how many percent `curve` needs fewer (negative) or more bits than `anchor` at the same PSNR.

  Returns {"checkpoint", "anchor", "percent", "method", "overlap_db", "reason"}. `percent` is None, and
  `reason` says why, when a curve has one point, does not rise, or the anchor covers too little of its range.
  """
  low, high = max(curve.psnr.min(), anchor.psnr.min()), min(curve.psnr.max(), anchor.psnr.max())
  percent, reason = None, None
  if min(len(curve.psnr), len(anchor.psnr)) < 2:
    reason = "one point is no curve"
  elif not all(np.all(np.diff(values) > 0) for values in (curve.bpp, curve.psnr, anchor.bpp, anchor.psnr)):
    reason = "PSNR does not rise with the rate"
  elif high - low < BD_MIN_OVERLAP * np.ptp(curve.psnr):
    reason = (f"too little overlap: {curve.psnr.min():.1f} to {curve.psnr.max():.1f} dB against "
              f"{anchor.psnr.min():.1f} to {anchor.psnr.max():.1f} dB")
  else:
    percent = float(bjontegaard.bd_rate(anchor.bpp, anchor.psnr, curve.bpp, curve.psnr, BD_METHOD,
                                        require_matching_points=False, min_overlap=0))
  return {"checkpoint": curve.name, "anchor": anchor.name, "percent": percent, "method": BD_METHOD,
          "overlap_db": None if percent is None else [float(low), float(high)], "reason": reason}
