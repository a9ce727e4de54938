"""Cuts image files into files of the same format that have some of the rows each; here PPM, and what formats share.

Pillow decodes whole files. A strip of rows with the header of its file is a small whole file, and is decoded as the
original is, whatever its colors are. A function for a format returns None for a layout whose rows it cannot cut.
"""
from collections.abc import Callable, Iterator
from typing import IO

from PIL import ImageFile

ROWS = 256                                        # of a strip, or a little more
Strips = Callable[[IO[bytes]], Iterator[bytes]]   # yields the files of the strips of an opened file


def ppm_strips(image: ImageFile.ImageFile) -> Strips | None:
  """Returns the strips of an opened binary PBM, PGM or PPM."""
  (decoder, _, start, args), (width, height) = image.tile[0], image.size
  if decoder == "ppm_plain" or image.mode not in ("1", "L", "RGB"):
    return None
  size = {"1": -(-width // 8), "L": width, "RGB": 3 * width}[image.mode]
  largest = args[1] if isinstance(args, tuple) else 255

  def strips(file):
    for top in range(0, height, ROWS):
      rows = min(ROWS, height - top)
      file.seek(start + top * size)
      head = {"1": f"P4 {width} {rows}\n", "L": f"P5 {width} {rows} {largest}\n",
              "RGB": f"P6 {width} {rows} {largest}\n"}
      yield head[image.mode].encode() + file.read(rows * size)

  return strips
