"""Random access to the images of a source, which are decoded on demand and at reduced sizes."""

import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mlic_jax.data.image_io import ImageError, load_image
from mlic_jax.data.pillow_decode import HEIC, apply_orientation, check_8bit_rgb, check_pixels, error_reason, open_image
from mlic_jax.data.sources import Source

REDUCTIONS = (1, 2, 4, 8)  # factors of the reduced sizes of JPEG files, which decode in a fraction of the time


class Header(NamedTuple):
  """Properties of an image before it is decoded."""
  short_side: int   # pixels
  lossy: bool       # a JPEG, HEIC, or a WebP that is not lossless
  reducible: bool   # decodes at the reduced sizes of REDUCTIONS


class LazyImage(NamedTuple):
  """An image that is decoded on demand.

  `decode(reduction)` returns (H, W, 3) uint8 with sides divided by `reduction` and rounded up. ImageError for a broken
  image."""
  header: Header
  decode: Callable[..., np.ndarray]


class LazyImages:
  """The images of a source as a sequence of LazyImage. ImageError in each access of a broken image.

  Headers are cached, and decoded pixels up to `cache_bytes` per process."""

  def __init__(self, source: Source, cache_bytes: int = 0, headers: dict[int, Header] | None = None):
    self.source = source
    self.cache_bytes = cache_bytes
    self._headers = {} if headers is None else headers
    self._cache: dict[tuple[int, int], np.ndarray] = {}
    self._cached_bytes, self._lock = 0, threading.Lock()
    self._broken: dict[int, str] = {}

  def __getstate__(self) -> dict:          # for worker processes, which have their own lock
    return {name: value for name, value in vars(self).items() if name != "_lock"}

  def __setstate__(self, state: dict) -> None:
    vars(self).update(state, _lock=threading.Lock())

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> LazyImage:
    if index in self._broken:
      raise ImageError(self._broken[index])
    header, file = self._headers.get(index), None
    if header is None:
      file = self._remember_errors(index, self.source.file, index)
      header = self._headers[index] = self._remember_errors(index, read_header, file)
    decode_reduced: Callable[..., np.ndarray] = lambda reduction=1: self._decode(index, reduction, file)
    return LazyImage(header, decode_reduced)

  def _decode(self, index: int, reduction: int, file) -> np.ndarray:
    image = self._cache.get((index, reduction))
    if image is None:
      file = self._remember_errors(index, self.source.file, index) if file is None else file
      image = self._remember_errors(index, decode, file, reduction)
      with self._lock:                     # of two threads that decoded the same image, one caches it
        if (index, reduction) not in self._cache and self._cached_bytes + image.nbytes <= self.cache_bytes:
          self._cached_bytes += image.nbytes
          self._cache[index, reduction] = image
    return image

  def _remember_errors(self, index: int, read: Callable, *arguments):
    """Return read(*arguments), and remember errors, so that a broken file is read once."""
    try:
      return read(*arguments)
    except ImageError as error:
      self._broken[index] = str(error)
      raise


def read_header(file) -> Header:
  """Return the header of a path or file object. ImageError if it is not readable as an image."""
  try:
    with open_image(file) as image:
      check_8bit_rgb(file, image)
      check_pixels(file, image)
      jpeg = image.format in ("JPEG", "MPO")
      lossy = jpeg or image.format == HEIC or image.format == "WEBP" and _lossy_webp(image.fp)
      return Header(min(image.size), lossy, jpeg)
  except ImageError:
    raise
  except Exception as error:  # Pillow's openers raise OSError, SyntaxError, struct.error, ... for a broken file
    raise ImageError(f"{file}: cannot be read as an image ({error_reason(file, error)})") from error


def _lossy_webp(file) -> bool:
  """Return whether a WebP file is lossy: its first image chunk is "VP8 " and not "VP8L"."""
  file.seek(12)  # "RIFF", size, "WEBP"
  while len(head := file.read(8)) == 8:
    name, size = struct.unpack("<4sI", head)
    if name in (b"VP8 ", b"VP8L"):
      return name == b"VP8 "
    if name == b"ANMF":  # a frame of an animation, with 16 bytes of geometry before its image chunks
      size = 16
    file.seek(size + size % 2, 1)
  return False


def decode(file, reduction: int = 1) -> np.ndarray:
  """Decode to (H, W, 3) uint8 with sides divided by `reduction`, rounded up. Above 1 it is for JPEG files only.

  The decoder of JPEG reduces the size by leaving out high frequencies of its blocks, before their transform."""
  if reduction == 1:
    return load_image(file)
  try:
    with open_image(file) as image:
      check_pixels(file, image)
      image.draft(image.mode, (image.width // reduction, image.height // reduction))
      return np.asarray(apply_orientation(image).convert("RGB"))
  except ImageError:
    raise
  except Exception as error:
    raise ImageError(f"{file}: cannot be read as an image ({error_reason(file, error)})") from error
