"""PngWriter: an 8-bit RGB PNG that is written in strips, so that the image need not be in memory as a whole."""
import struct
import zlib
from typing import IO

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">IIBBBBB")     # width, height, bits, color type, compression, filter method, interlacing
RGB = 2                                # a color type
ROWS = 64                              # that are filtered at a time: as much memory as some of them take
LEVEL = 6                              # of zlib


class PngWriter:
  """Writes the rows of an image (height, width, 3) uint8 to a binary file, from the top.

  Each row has the filter of the PNG specification (None, Sub, Up, Average, Paeth) whose output has the smallest sum of
  absolute values, as its section 12.8 recommends."""

  def __init__(self, file: IO[bytes], height: int, width: int, icc_profile: bytes | None = None):
    self._file, self._deflate = file, zlib.compressobj(LEVEL)
    self._above, self._missing = np.zeros((1, width, 3), np.uint8), height
    file.write(SIGNATURE)
    self._chunk(b"IHDR", HEADER.pack(width, height, 8, RGB, 0, 0, 0))
    if icc_profile is not None:
      self._chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))

  def write(self, rows: np.ndarray) -> None:
    """Appends rows (n, width, 3) uint8."""
    self._missing -= len(rows)
    for start in range(0, len(rows), ROWS):
      block = rows[start:start + ROWS]
      if data := self._deflate.compress(_filtered(block, self._above)):
        self._chunk(b"IDAT", data)
      self._above = block[-1:].copy()

  def finish(self) -> None:
    """Ends the file; ValueError unless all rows were written."""
    if self._missing:
      raise ValueError(f"{self._missing} rows of the PNG are missing")
    self._chunk(b"IDAT", self._deflate.flush())
    self._chunk(b"IEND", b"")

  def _chunk(self, kind: bytes, data: bytes) -> None:
    self._file.write(png_chunk(kind, data))


def png_chunk(kind: bytes, data: bytes) -> bytes:
  """Returns a chunk with its length and its checksum."""
  checksum = zlib.crc32(data, zlib.crc32(kind))
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _filtered(rows: np.ndarray, above: np.ndarray) -> bytes:
  """The filter types and the filtered bytes of rows (n, width, 3); `above` (1, width, 3) is the row before them."""
  up = np.concatenate([above, rows[:-1]])
  left, corner = (np.pad(each[:, :-1], ((0, 0), (1, 0), (0, 0))) for each in (rows, up))
  average = ((left.astype(np.uint16) + up) // 2).astype(np.uint8)
  candidates = np.stack([rows, rows - left, rows - up, rows - average, rows - _paeth(left, up, corner)])
  sums = np.abs(candidates.view(np.int8).astype(np.int16)).sum((2, 3), dtype=np.int64)
  types = sums.argmin(0)
  chosen = candidates[types, np.arange(len(rows))].reshape(len(rows), -1)
  return np.concatenate([types[:, None].astype(np.uint8), chosen], axis=1).tobytes()


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
  """Whichever of the three neighbors is nearest to left + up - corner; of equally near ones the first."""
  a, b, c = (each.astype(np.int16) for each in (left, up, corner))
  to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
  return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
