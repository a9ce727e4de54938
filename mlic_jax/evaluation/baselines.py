"""JPEG and WebP on the same images, through Pillow: what everybody has already, as files of the same kind.

A baseline is one value of `BASELINES`: (H, W, 3) uint8 and a quality in, a complete file out.
"""
import io
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image


class Baseline(NamedTuple):
  """A conventional codec with one setting of everything but the quality."""
  name: str
  encode: Callable[[np.ndarray, int], bytes]
  qualities: tuple[int, ...]                             # of the sweep, rising; about evenly spaced in PSNR


def encode_jpeg(image: np.ndarray, quality: int, *, subsampling: str = "4:2:0") -> bytes:
  """JPEG file (baseline DCT, optimised Huffman tables) of an (H, W, 3) uint8 image, quality 1..95."""
  return _save(image, "JPEG", quality=quality, subsampling=subsampling, optimize=True)


def encode_webp(image: np.ndarray, quality: int) -> bytes:
  """Lossy WebP file (method 6, the slowest and smallest) of an (H, W, 3) uint8 image, quality 0..100."""
  return _save(image, "WEBP", quality=quality, method=6)


def decode(blob: bytes) -> np.ndarray:
  """The (H, W, 3) uint8 image in a file of either codec."""
  return np.array(Image.open(io.BytesIO(blob)).convert("RGB"))


def _save(image: np.ndarray, image_format: str, **options) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, image_format, **options)
  return buffer.getvalue()


JPEG = Baseline("JPEG 4:2:0", encode_jpeg, (5, 10, 20, 35, 55, 75, 88, 95))
JPEG_444 = Baseline("JPEG 4:4:4", partial(encode_jpeg, subsampling="4:4:4"), JPEG.qualities)
WEBP = Baseline("WebP", encode_webp, (0, 5, 15, 35, 60, 80, 90, 97))
BASELINES = (JPEG, WEBP)                                 # those that stand beside a checkpoint
