"""Rate and distortion of one image with a checkpoint or a conventional codec, and means over images.

A codec is `mlic_jax.Codec`, or an object with its `encode_with_bits`, `decode` and `estimate`. It runs in this process;
distortions and baselines run in `workers`, an Executor (workers.py).
"""
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np

from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.data.image_io import ImageError
from mlic_jax.evaluation.baselines import Baseline, decode
from mlic_jax.evaluation.workers import SerialExecutor
from mlic_jax.metrics import ms_ssim_8bit, ms_ssim_db, mse, psnr_of_mse


class BaselineLimit(ImageError):
  """A conventional codec cannot encode an image, such as WebP above 16383 pixels per side; the message is one line."""


class ReconstructionMismatch(ValueError):
  """A file does not decode to the image that its encoder predicted; the message is one line."""
  status = 1


@dataclasses.dataclass(frozen=True)
class ImageResult:
  """The results of one image, codec and quality: the fields of results.json, in its order."""
  name: str
  height: int
  width: int
  bytes: int | None                # size of the complete file; None if the rate is only estimated
  bpp: float | None                # 8 * bytes / (height * width)
  bpp_estimated: float | None      # by the likelihoods of the model; None for conventional codecs
  mse: float                       # in squared 8-bit levels of RGB
  psnr: float                      # dB, from mse
  ms_ssim: float | None            # None below 176 pixels, see metrics.py
  ms_ssim_db: float | None
  encode_s: float | None
  decode_s: float | None

  @property
  def file_bytes(self) -> int:
    """The value of `bytes`; it must not be None."""
    assert self.bytes is not None
    return self.bytes


@dataclasses.dataclass(frozen=True)
class ProgressiveResult:
  """The results after z and some slices of a file: the fields of "progressive" in results.json."""
  slices: int
  bytes: int                       # bytes received, with the header
  bpp: float
  psnr: float                      # dB
  ms_ssim: float | None            # None below 176 pixels


class Coded(NamedTuple):
  """The output of a codec for an image, before the comparison with the image."""
  reconstruction: np.ndarray       # (H, W, 3) uint8
  blob: bytes | None               # the complete file; None if the rate is only estimated
  bits: float | None               # by the likelihoods of the model
  encode_s: float | None
  decode_s: float | None

  @property
  def file(self) -> bytes:
    """The value of `blob`; it must not be None."""
    assert self.blob is not None
    return self.blob

  @property
  def size(self) -> int:
    """The size of the file in bytes, or the estimated size without a file."""
    if self.blob is not None:
      return len(self.blob)
    assert self.bits is not None
    return int(np.ceil(self.bits / 8))


def code(codec, name: str, image: np.ndarray, quality: float | None) -> Coded:
  """Encodes and decodes an image (H, W, 3) uint8, and estimates its bits.

  encode_s includes the reconstruction in the encoder. ReconstructionMismatch if the decoder returns another image.
  """
  start = time.perf_counter()
  try:
    blob, reconstruction, bits = codec.encode_with_bits(image, quality)
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
                                 "differ from those that the encoder predicted")
  return Coded(decoded, blob, bits(), encoded - start, end - encoded)


def estimate(codec, name: str, image: np.ndarray, quality: float | None) -> Coded:
  """Estimates the bits of an image (H, W, 3) uint8 by likelihoods, without a file and times."""
  bits, reconstruction = codec.estimate(image, quality)
  return Coded(reconstruction, None, float(bits), None, None)


def code_baseline(baseline: Baseline, name: str, image: np.ndarray, quality: int) -> Coded:
  """Encodes and decodes with a conventional codec. BaselineLimit if it cannot encode the image."""
  start = time.perf_counter()
  try:
    blob = baseline.encode(image, quality)
    encoded = time.perf_counter()
    decoded = decode(blob)
  except Exception as error:                             # each library raises errors of its own
    height, width = image.shape[:2]
    raise BaselineLimit(f"{name}: {baseline.name} cannot encode {width}x{height} pixels "
                        f"({' '.join(str(error).split())})") from error
  return Coded(decoded, blob, None, encoded - start, time.perf_counter() - encoded)


def compare(name: str, image: np.ndarray, coded: Coded) -> ImageResult:
  """Computes rates per pixel of the image before padding, and distortions of the reconstruction."""
  height, width = image.shape[:2]
  num_pixels, error = height * width, mse(image, coded.reconstruction)
  similarity = ms_ssim_8bit(image, coded.reconstruction)
  size = None if coded.blob is None else len(coded.blob)
  return ImageResult(name, height, width, size, None if size is None else 8 * size / num_pixels,
                     None if coded.bits is None else coded.bits / num_pixels, error, psnr_of_mse(error), similarity,
                     None if similarity is None else ms_ssim_db(similarity), coded.encode_s, coded.decode_s)


def measure_baseline(baseline: Baseline, name: str, image: np.ndarray, qualities: Sequence[int]) -> list[ImageResult]:
  """Measures one image at several qualities of a baseline; runs in any process."""
  baseline.check()                                       # registers the plugin in this process
  return [compare(name, image, code_baseline(baseline, name, image, quality)) for quality in qualities]


def measure_codec(codec, name: str, image: np.ndarray, qualities: Sequence[float | None], *, estimated: bool = False,
                  workers: Executor | None = None,
                  on_coded: Callable[[float | None, Coded], None] | None = None) -> list[Future[ImageResult]]:
  """Measures one image at several qualities of a checkpoint; this process codes it, and `workers` compare.

  on_coded: called with each quality and the output of the codec.
  """
  workers = workers or SerialExecutor()
  futures = []
  for quality in qualities:
    coded = (estimate if estimated else code)(codec, name, image, quality)
    if on_coded:
      on_coded(quality, coded)
    futures.append(workers.submit(compare, name, image, coded))
  return futures


def mean(results: Sequence[ImageResult]) -> dict[str, float | None]:
  """Returns means over images with equal weights, over images that have the figure; None if no image has it.

  "psnr" and "ms_ssim_mean_of_db" are means of the dB of each image. "psnr_of_pooled_mse" is the PSNR of the squared
  error over all samples of all images, and "ms_ssim_db_of_mean" is the mean MS-SSIM in dB.
  """
  def column(field):
    values = [value for result in results if (value := getattr(result, field)) is not None]
    return float(np.mean(values)) if values else None

  figures = {field: column(field) for field in ("bytes", "bpp", "bpp_estimated", "psnr")}
  pooled_mse = np.average([result.mse for result in results], weights=[each.height * each.width for each in results])
  figures["psnr_of_pooled_mse"] = psnr_of_mse(float(pooled_mse))
  figures["ms_ssim"] = column("ms_ssim")
  figures["ms_ssim_db_of_mean"] = None if figures["ms_ssim"] is None else ms_ssim_db(figures["ms_ssim"])
  figures["ms_ssim_mean_of_db"] = column("ms_ssim_db")
  return figures | {field: column(field) for field in ("encode_s", "decode_s")}
