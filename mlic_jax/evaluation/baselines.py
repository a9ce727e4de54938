"""Conventional codecs as baselines, evaluated on the same images with complete files.

A baseline is a value of `BASELINES`. It encodes (H, W, 3) uint8 at a quality to a complete file, and Pillow decodes it.
A baseline that is not part of Pillow needs a package; its error message names the package.
"""
import importlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, features

from mlic_jax.data.pillow_decode import open_image


class BaselineError(ValueError):
  """The baseline is unknown or cannot run here; the message is one line with the remedy."""


class Baseline(NamedTuple):
  """A conventional codec with fixed settings except for the quality."""
  name: str
  encode: Callable[[np.ndarray, int], bytes]
  qualities: tuple[int, ...]                             # evaluated qualities, rising, about evenly spaced in PSNR
  all_qualities: range                                   # valid qualities of `encode`
  check: Callable[[], None]                              # registers plugins; BaselineError if something is missing


def encode_jpeg(image: np.ndarray, quality: int, *, subsampling: str = "4:2:0") -> bytes:
  """Encodes an (H, W, 3) uint8 image as JPEG (baseline DCT, optimized Huffman tables), quality 1..95."""
  return _save(image, "JPEG", quality=quality, subsampling=subsampling, optimize=True)


def encode_webp(image: np.ndarray, quality: int) -> bytes:
  """Encodes an (H, W, 3) uint8 image as lossy WebP (method 6: the slowest and smallest), quality 0..100."""
  return _save(image, "WEBP", quality=quality, method=6)


def encode_avif(image: np.ndarray, quality: int) -> bytes:
  """Encodes an (H, W, 3) uint8 image as AVIF (AV1 by libaom at speed 6, 4:4:4), quality 0..100.

  4:4:4 has a better PSNR on RGB, and papers use it for BPG and VTM. It runs in one thread, because the file depends on
  the number of threads.
  """
  return _save(image, "AVIF", quality=quality, speed=6, codec="aom", subsampling="4:4:4", max_threads=1)


def encode_jpeg2000(image: np.ndarray, quality: int) -> bytes:
  """Encodes an (H, W, 3) uint8 image as JPEG 2000 (9/7 wavelets, OpenJPEG); quality is bits per pixel times 100.

  OpenJPEG's constant quality is a PSNR. Means over images of equal PSNR and very different rates would not be
  comparable with other curves.
  """
  return _save(image, "JPEG2000", quality_mode="rates", quality_layers=[2400 / quality], irreversible=True)


def encode_jpeg_xl(image: np.ndarray, quality: int) -> bytes:
  """Encodes an (H, W, 3) uint8 image as JPEG XL (libjxl, effort 7, its default), quality 0..100."""
  return _save(image, "JXL", quality=quality, effort=7, lossless=False)


def encode_heic(image: np.ndarray, quality: int) -> bytes:
  """Encodes an (H, W, 3) uint8 image as HEIC (an intra frame of HEVC by x265, 4:4:4), quality 0..100."""
  return _save(image, "HEIF", quality=quality, chroma=444)


def decode(blob: bytes) -> np.ndarray:
  """Decodes a file of any of these codecs to an (H, W, 3) uint8 image."""
  return np.array(open_image(io.BytesIO(blob), formats=None).convert("RGB"))


def _save(image: np.ndarray, image_format: str, **options) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, image_format, **options)
  return buffer.getvalue()


def _needs_pillow(feature: str, name: str) -> None:
  if not features.check(feature):
    raise BaselineError(f"{name}: this Pillow was built without {feature}; wanted pillow>=11.3 from a wheel")


def _needs_package(module: str, package: str, name: str, register: str | None = None) -> None:
  """Imports a Pillow plugin. Importing registers it, or else calling its function `register`."""
  try:
    plugin = importlib.import_module(module)
  except ImportError as error:
    raise BaselineError(f"{name}: needs the package {package} ({error}); pip install {package}") from None
  if register:
    getattr(plugin, register)()


def _baseline(name, encode, qualities, all_qualities, needs) -> Baseline:
  return Baseline(name, encode, qualities, all_qualities, partial(*needs, name=name))


# Qualities cover about 0.1 bits per pixel, or the minimum of a codec, to a little above 1.5 on photographs.
BASELINES = {
    "jpeg": _baseline("JPEG 4:2:0", encode_jpeg, (5, 10, 20, 35, 55, 75, 88, 95), range(1, 96),
                      (_needs_pillow, "jpg")),
    "jpeg444": _baseline("JPEG 4:4:4", partial(encode_jpeg, subsampling="4:4:4"), (5, 10, 20, 35, 55, 75, 88, 95),
                         range(1, 96), (_needs_pillow, "jpg")),
    "webp": _baseline("WebP", encode_webp, (0, 5, 15, 35, 60, 80, 90, 97), range(0, 101), (_needs_pillow, "webp")),
    "avif": _baseline("AVIF 4:4:4", encode_avif, (10, 20, 30, 40, 50, 60, 70, 80), range(0, 101),
                      (_needs_pillow, "avif")),
    "jpeg2000": _baseline("JPEG 2000", encode_jpeg2000, (10, 15, 25, 40, 60, 85, 120, 170), range(1, 1201),
                          (_needs_pillow, "jpg_2000")),
    "jpegxl": _baseline("JPEG XL", encode_jpeg_xl, (10, 20, 35, 50, 65, 75, 84, 90), range(0, 100),
                        (_needs_package, "pillow_jxl", "pillow-jxl-plugin")),
    "heic": _baseline("HEIC 4:4:4", encode_heic, (5, 12, 20, 27, 35, 42, 50, 58), range(0, 101),
                      (partial(_needs_package, register="register_heif_opener"), "pillow_heif", "pillow-heif")),
}
JPEG, JPEG_444, WEBP = (BASELINES[key] for key in ("jpeg", "jpeg444", "webp"))
DEFAULT = ("jpeg", "webp")                               # default of --baselines


def select(names: Sequence[str]) -> tuple[list[Baseline], list[str]]:
  """Returns the baselines of these names, and for ("all",) a line about each baseline that cannot run here.

  ("all",) selects all baselines that can run; ("none",) and () select none. BaselineError for an unknown name, and for
  a named baseline that cannot run here.
  """
  if tuple(names) in ((), ("none",)):
    return [], []
  if tuple(names) == ("all",):
    ready, missing = [], []
    for baseline in BASELINES.values():
      try:
        baseline.check()
        ready.append(baseline)
      except BaselineError as error:
        missing.append(f"left out {error}")
    return ready, missing
  for name in names:
    if name not in BASELINES:
      raise BaselineError(f"no baseline {name!r}; wanted all, none, or some of {', '.join(BASELINES)}")
  wanted = [BASELINES[name] for name in BASELINES if name in names]
  for baseline in wanted:
    baseline.check()
  return wanted, []
