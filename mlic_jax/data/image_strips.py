"""ImageStrips: an image file that is read in strips from the top, and need not be in memory as a whole."""
import contextlib
import io
from collections.abc import Iterator
from typing import IO

import numpy as np

from mlic_jax.data.image_io import LoadedImage, from_pil, load_image_with_profile, one_line_errors
from mlic_jax.data.pillow_decode import (
  PIXELS_MAX,
  check_8bit_rgb,
  check_pixels,
  describe_other_color,
  is_rgb_profile,
  open_image,
  read_orientation,
)
from mlic_jax.data.png_strips import png_strips, without_pixels
from mlic_jax.data.strip_files import Strips, ppm_strips
from mlic_jax.data.tiff_strips import tiff_strips


class ImageStrips:
  """An image file whose rows are decoded as they are needed; `open_strips` returns it.

  Attributes:
    shape: (H, W, 3).
    icc_profile, other_color: as of LoadedImage.
  """

  def __init__(self, source, shape: tuple[int, int, int], strips: Strips, icc_profile: bytes | None,
               other_color: str, pixels_max: int):
    self.shape, self.icc_profile, self.other_color = shape, icc_profile, other_color
    self._source, self._strips, self._pixels_max = source, strips, pixels_max

  def __iter__(self) -> Iterator[np.ndarray]:
    """Yields strips of rows from the top, (rows, W, 3) uint8, with the pixels of `load`.

    ImageError if the file is damaged, when the rows come to the damage."""
    with one_line_errors(self._source), _opened(self._source) as file:
      for content in self._strips(file):
        with open_image(io.BytesIO(content)) as image:
          yield from_pil(str(self._source), image, self._pixels_max).image

  def load(self) -> LoadedImage:
    """Returns the whole image. ImageError if the file is damaged."""
    return load_image_with_profile(self._source, self._pixels_max)


def open_strips(source, pixels_max: int = PIXELS_MAX) -> ImageStrips | None:
  """Opens an image file, by its path or as a file object, to read it in strips.

  None if its format or layout is read as a whole: all but PNG, TIFF and binary PPM, interlaced or animated PNGs, TIFFs
  in a single compressed strip, and images that EXIF turns. None too for a file that is broken or more than 8-bit RGB,
  whose error `load_image_with_profile` raises; except that damaged pixels are found as they are read."""
  try:
    with _opened(source) as file, open_image(file) as image:
      check_8bit_rgb(source, image)
      check_pixels(source, image, pixels_max)
      strips = _strips(file, image)
      if strips is None:
        return None
      profile, other = image.info.get("icc_profile"), describe_other_color(image)
      return ImageStrips(source, (image.height, image.width, 3), strips, profile if is_rgb_profile(profile) else None,
                         other, pixels_max)
  except Exception:   # of any kind, as in one_line_errors
    return None


def _strips(file: IO[bytes], image) -> Strips | None:
  if image.format == "PNG":
    with open_image(io.BytesIO(without_pixels(file))) as texts:
      texts.load()
      return None if read_orientation(texts) else png_strips(file)
  if image.format == "TIFF":
    return None if read_orientation(image) else tiff_strips(file, image)
  return ppm_strips(image) if image.format == "PPM" else None


@contextlib.contextmanager
def _opened(source) -> Iterator[IO[bytes]]:
  if hasattr(source, "read"):
    source.seek(0)
    yield source
  else:
    with open(source, "rb") as file:
      yield file
