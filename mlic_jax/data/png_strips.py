"""Cuts PNG files into files of some rows; see strip_files.py."""
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from mlic_jax.data.pillow_decode import open_image
from mlic_jax.data.png_writer import HEADER, SIGNATURE, png_chunk
from mlic_jax.data.strip_files import ROWS, Strips

PIECE = 2**16                                     # bytes that are inflated at a time
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}         # by color type
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}            # with 8 bits per channel, by bytes per pixel


def png_strips(file: IO[bytes]) -> Strips | None:
  """Returns the strips of a PNG.

  The filters of PNG predict the bytes of a row from the row above. So the rows of a strip are unfiltered below the row
  above them, as an image with 8 bits per channel, and written again without filters and with the colors of the file."""
  head, position = dict[bytes, bytes](), 0
  for kind, size, place in _chunks(file):
    if kind == b"IDAT":
      position = place
      break
    if kind in (b"IHDR", b"PLTE", b"tRNS"):
      head[kind] = file.read(size)
    elif kind in (b"acTL", b"fdAT"):     # an animation, which may have another first frame
      return None
  width, height, depth, color_type, *_, interlaced = HEADER.unpack(head[b"IHDR"])
  if interlaced or depth > 8:
    return None
  size, pixel = -(-width * depth * CHANNELS[color_type] // 8), max(1, depth * CHANNELS[color_type] // 8)

  def png(header, chunks, rows):
    return b"".join([SIGNATURE, png_chunk(b"IHDR", HEADER.pack(*header, 0, 0, 0)),
                     *(png_chunk(*each) for each in chunks.items()),
                     png_chunk(b"IDAT", zlib.compress(rows, 0)), png_chunk(b"IEND", b"")])

  def strips(file):
    above, chunks = b"", {kind: data for kind, data in head.items() if kind != b"IHDR"}
    inflated = _inflated(file, position)
    for top in range(0, height, ROWS):
      rows, before = min(ROWS, height - top), 1 if top else 0
      filtered = png((size // pixel, before + rows, 8, COLOR_TYPES[pixel]), {}, above + inflated(rows * (1 + size)))
      with open_image(io.BytesIO(filtered)) as image:
        unfiltered = np.asarray(image).reshape(before + rows, size)
      plain = np.pad(unfiltered, ((0, 0), (1, 0)))
      above = plain[-1].tobytes()
      yield png((width, rows, depth, color_type), chunks, plain[before:].tobytes())

  return strips


def without_pixels(file: IO[bytes]) -> bytes:
  """Returns a PNG of one gray pixel with the texts and the EXIF of a PNG, before and after its pixels as they are."""
  before, after = [SIGNATURE, png_chunk(b"IHDR", HEADER.pack(1, 1, 8, 0, 0, 0, 0))], list[bytes]()
  for kind, size, position in _chunks(file):
    if kind == b"IDAT":
      after = after or [png_chunk(b"IDAT", zlib.compress(b"\0\0"))]
    elif kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
      file.seek(position - 8)
      (after or before).append(file.read(12 + size))
  return b"".join([*before, *after, png_chunk(b"IEND", b"")])


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
  """Yields the type, the size and the position of the content of each chunk, where the file then is."""
  position = len(SIGNATURE)
  while True:
    file.seek(position)
    head = file.read(8)
    if len(head) < 8:
      return
    size, kind = struct.unpack(">I4s", head)
    yield kind, size, position + 8
    position += 12 + size


def _inflated(file: IO[bytes], position: int) -> Callable[[int], bytes]:
  """Returns a function that reads the next bytes of the pixels of a PNG, whose first IDAT is at `position`."""
  inflate = zlib.decompressobj()

  def pieces():
    start = position - 8
    while True:
      file.seek(start)
      size, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
      if kind != b"IDAT":
        return
      for place in range(0, size, PIECE):
        file.seek(start + 8 + place)
        yield file.read(min(PIECE, size - place))
      start += 12 + size

  coming = pieces()

  def read(count):
    parts = bytearray()
    while len(parts) < count:
      piece = inflate.unconsumed_tail or next(coming, b"")
      found = inflate.decompress(piece, count - len(parts))
      if inflate.eof and len(parts) + len(found) < count or not piece and not found:
        raise OSError("the pixels are truncated")
      parts += found
    return bytes(parts)

  return read
