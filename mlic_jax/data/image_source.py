"""Random access to the photographs of a source, each decoded as far as it is needed."""

import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mlic_jax.data.image_io import ImageError, load_image
from mlic_jax.data.pillow_decode import HEIC, check_pixels, open_picture, reason, refuse_what_rgb_cannot_hold, upright
from mlic_jax.data.sources import Source

REDUCTIONS = (1, 2, 4, 8)  # how many times smaller a JPEG can be decoded, in a fraction of the time


class Header(NamedTuple):
  """What is known of a photograph before it is decoded."""
  short_side: int   # pixels
  lossy: bool       # a JPEG, HEIC, or a WebP that is not lossless
  reducible: bool   # can be decoded smaller, by the factors of REDUCTIONS


class Photograph(NamedTuple):
  """A photograph that is decoded when it is asked for: reduction -> (H, W, 3) uint8, sides divided by it and rounded
  up. ImageError when it is broken."""
  header: Header
  decode: Callable[..., np.ndarray]


class Photographs:
  """The photographs of a source by index: photographs[i] is a Photograph; ImageError, each time, for a broken one.

  Headers are kept, and decoded pixels up to `cache_bytes` (per process)."""

  def __init__(self, source: Source, cache_bytes: int = 0, headers: dict[int, Header] | None = None):
    self.source = source
    self.cache_bytes = cache_bytes
    self._headers = {} if headers is None else headers
    self._cache: dict[tuple[int, int], np.ndarray] = {}
    self._cached_bytes, self._lock = 0, threading.Lock()
    self._broken: dict[int, str] = {}

  def __getstate__(self) -> dict:          # for worker processes, which have a lock of their own
    return {name: value for name, value in vars(self).items() if name != "_lock"}

  def __setstate__(self, state: dict) -> None:
    vars(self).update(state, _lock=threading.Lock())

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Photograph:
    if index in self._broken:
      raise ImageError(self._broken[index])
    header, file = self._headers.get(index), None
    if header is None:
      file = self._unless_broken(index, self.source.file, index)
      header = self._headers[index] = self._unless_broken(index, read_header, file)
    decode_reduced: Callable[..., np.ndarray] = lambda reduction=1: self._decode(index, reduction, file)
    return Photograph(header, decode_reduced)

  def _decode(self, index: int, reduction: int, file) -> np.ndarray:
    image = self._cache.get((index, reduction))
    if image is None:
      file = self._unless_broken(index, self.source.file, index) if file is None else file
      image = self._unless_broken(index, decode, file, reduction)
      with self._lock:                     # of two threads that decoded the same image, one caches it
        if (index, reduction) not in self._cache and self._cached_bytes + image.nbytes <= self.cache_bytes:
          self._cached_bytes += image.nbytes
          self._cache[index, reduction] = image
    return image

  def _unless_broken(self, index: int, read: Callable, *arguments):
    """read(*arguments), and a note when it fails: a broken file is read once."""
    try:
      return read(*arguments)
    except ImageError as error:
      self._broken[index] = str(error)
      raise


def read_header(file) -> Header:
  """The header of a path or of a file object; ImageError when it is not readable as a photograph."""
  try:
    with open_picture(file) as image:
      refuse_what_rgb_cannot_hold(file, image)
      check_pixels(file, image)
      jpeg = image.format in ("JPEG", "MPO")
      lossy = jpeg or image.format == HEIC or image.format == "WEBP" and _lossy_webp(image.fp)
      return Header(min(image.size), lossy, jpeg)
  except ImageError:
    raise
  except Exception as error:  # Pillow's openers raise OSError, SyntaxError, struct.error, ... for a broken file
    raise ImageError(f"{file}: not readable as a photograph ({reason(file, error)})") from error


def _lossy_webp(file) -> bool:
  """Whether a WebP file holds a lossy image: the first of its chunks that is one is "VP8 ", and not "VP8L"."""
  file.seek(12)  # "RIFF", size, "WEBP"
  while len(head := file.read(8)) == 8:
    name, size = struct.unpack("<4sI", head)
    if name in (b"VP8 ", b"VP8L"):
      return name == b"VP8 "
    if name == b"ANMF":  # a frame of an animation: its image chunks follow 16 bytes of geometry
      size = 16
    file.seek(size + size % 2, 1)
  return False


def decode(file, reduction: int = 1) -> np.ndarray:
  """(H, W, 3) uint8, its sides divided by `reduction`, rounded up; only JPEG files have a `reduction` above 1.

  A JPEG is made smaller by leaving out the high frequencies of its blocks, before they are transformed."""
  if reduction == 1:
    return load_image(file)
  try:
    with open_picture(file) as image:
      check_pixels(file, image)
      image.draft(image.mode, (image.width // reduction, image.height // reduction))
      return np.asarray(upright(image).convert("RGB"))
  except ImageError:
    raise
  except Exception as error:
    raise ImageError(f"{file}: cannot be read as an image ({reason(file, error)})") from error
