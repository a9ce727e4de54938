"""Cuts TIFF files into files of some rows; see strip_files.py."""
import io
import itertools
from typing import IO

import numpy as np
from PIL import TiffImagePlugin

from mlic_jax.data.pillow_decode import (
  BITS,
  COLOR_MAP,
  COMPRESSION,
  EXTRA,
  FILL_ORDER,
  PHOTOMETRIC,
  PLANAR,
  SAMPLE_FORMAT,
  SAMPLES,
  SEPARATE,
  UNCOMPRESSED,
  YCBCR,
)
from mlic_jax.data.strip_files import ROWS, Strips

WIDTH, HEIGHT, OFFSETS, ROWS_PER_STRIP, COUNTS, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = (
    256, 257, 273, 278, 279, 322, 323, 324, 325)
PREDICTOR, JPEG_TABLES, T4_OPTIONS, T6_OPTIONS, COEFFICIENTS, SUBSAMPLING, POSITIONING, REFERENCE = (
    317, 347, 292, 293, 529, 530, 531, 532)
# All tags that Pillow and libtiff read pixels by, with these compressions.
COPIED = (WIDTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, PLANAR, COLOR_MAP, EXTRA, SAMPLE_FORMAT,
          PREDICTOR, JPEG_TABLES, T4_OPTIONS, T6_OPTIONS, COEFFICIENTS, SUBSAMPLING, POSITIONING, REFERENCE, TILE_WIDTH,
          TILE_HEIGHT)
COMPRESSIONS = (UNCOMPRESSED, 2, 3, 4, 5, 7, 8, 32773, 32946)   # CCITT, LZW, JPEG, Deflate, PackBits
LONG = 4                                 # a type


def tiff_strips(file: IO[bytes], image: TiffImagePlugin.TiffImageFile) -> Strips | None:
  """Returns the strips of an opened TIFF: its strips, its rows of tiles, or rows of an uncompressed strip."""
  tags = image.tag_v2
  width, height, bits, samples = tags[WIDTH], tags[HEIGHT], tags.get(BITS, (1,)), tags.get(SAMPLES, 1)
  tiled, separate = TILE_OFFSETS in tags, tags.get(PLANAR, 1) == SEPARATE
  if tags.get(COMPRESSION, 1) not in COMPRESSIONS or len(set(bits)) > 1:
    return None
  unit = tags[TILE_HEIGHT] if tiled else min(tags.get(ROWS_PER_STRIP, height), height)
  across, down, planes = -(-width // tags[TILE_WIDTH]) if tiled else 1, -(-height // unit), samples if separate else 1
  places = (TILE_OFFSETS, TILE_COUNTS) if tiled else (OFFSETS, COUNTS)
  offsets, counts = (tags.get(tag, ()) for tag in places)
  row_size = -(-width * bits[0] * (1 if separate else samples) // 8)
  in_rows = tags.get(COMPRESSION, 1) == UNCOMPRESSED and not tiled and tags.get(PHOTOMETRIC) != YCBCR
  if in_rows:                            # Pillow does not read these counts, which some programs write wrongly
    counts = planes * [row_size * min(unit, height - top) for top in range(0, height, unit)]
  if not len(offsets) == len(counts) == planes * down * across or sum(counts) > file.seek(0, io.SEEK_END):
    return None
  offsets, counts = (np.array(each).reshape(planes, down, across) for each in (offsets, counts))
  if unit > ROWS and not in_rows and 2 * unit > height:
    return None

  def tiff(file, rows, unit, offsets, counts):
    pixels = []
    for offset, count in zip(offsets.ravel().tolist(), counts.ravel().tolist()):
      file.seek(offset)
      pixels.append(file.read(count))
    starts = tuple(itertools.accumulate(map(len, pixels[:-1]), initial=0))
    numbers = {HEIGHT: rows, COUNTS: tuple(map(len, pixels)), OFFSETS: starts, ROWS_PER_STRIP: unit}
    if tiled:
      numbers = {HEIGHT: rows, TILE_COUNTS: numbers[COUNTS], TILE_OFFSETS: starts}
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=tags.prefix)
    directory.tagtype.update({tag: tags.tagtype[tag] for tag in COPIED if tag in tags})
    directory.tagtype.update({tag: LONG for tag in [*numbers, WIDTH]})
    for tag, value in [*((tag, tags[tag]) for tag in COPIED if tag in tags), *numbers.items()]:
      directory[tag] = value
    if tiled:                            # Pillow adds the size of the directory to offsets of strips alone
      size = len(_written(directory))
      directory[TILE_OFFSETS] = tuple(size + start for start in starts)
    return _written(directory) + b"".join(pixels)

  def strips(file):
    if in_rows and unit > ROWS:
      for top in (row for strip in range(0, height, unit) for row in range(strip, min(strip + unit, height), ROWS)):
        strip, row = divmod(top, unit)
        rows = min(ROWS, unit - row, height - top)
        yield tiff(file, rows, rows, offsets[:, strip] + row * row_size, np.full((planes, 1), rows * row_size))
    else:
      some = max(1, ROWS // unit)
      for first in range(0, down, some):
        part = slice(first, first + some)
        yield tiff(file, min(some * unit, height - first * unit), unit, offsets[:, part], counts[:, part])

  return strips


def _written(directory: TiffImagePlugin.ImageFileDirectory_v2) -> bytes:
  """Returns the header of a TIFF and its directory."""
  file = io.BytesIO()
  directory.save(file)
  return file.getvalue()
