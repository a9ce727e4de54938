"""Photographs from and to disk: (H, W, 3) uint8, RGB, and nothing else inside the project.

What a file holds is brought to RGB where that loses nothing: grayscale, 1-bit and palette images become RGB,
transparency (RGBA, LA, a transparent palette entry) is composited on white, and the EXIF orientation is
applied. What 8-bit RGB cannot hold (16 bits a channel, floats, CMYK, Lab) is refused, so that nobody measures a codec
on silently changed pixels. Of a file with several frames or pages the first is read.
"""
import contextlib
import io
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from mlic_jax.atomic_io import write_whole
from mlic_jax.data.file_listing import list_files
from mlic_jax.data.pillow_decode import (
  FORMATS,
  HEIC_EXTENSIONS,
  HEIC_NOT_READ,
  MODES,
  PIXELS_MAX,
  ImageError,
  check_pixels,
  color_beside_the_profile,
  is_of_rgb,
  on_white,
  open_picture,
  reads_heic,
  reason,
  refuse_what_rgb_cannot_hold,
  scale_transparent_gray,
  upright,
)
from mlic_jax.paths import as_path

log = logging.getLogger(__name__)

__all__ = ["AnyPicture", "EXTENSIONS", "FORMATS", "LOSSLESS", "MODES", "PIXELS_MAX", "ImageError", "Picture",
           "as_picture", "check_lossless", "list_images", "load_image", "load_picture", "picture_file", "save_image"]

HALF_A_LEVEL = 1 / 510  # of the 256 levels of uint8
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Image files that are left out of folders, and named: what nobody reads here, and cameras and phones write.
NOT_READ = (".gif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".psd", ".tga", ".ppm", ".pgm", ".pnm", ".exr",
            ".hdr", ".svg", ".ico", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw")

# The formats save_image writes, all of them without loss.
DEFLATED_TIFF = ("TIFF", {"compression": "tiff_deflate"})
LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}), ".webp": ("WEBP", {"lossless": True}), ".bmp": ("BMP", {}),
    ".tif": DEFLATED_TIFF, ".tiff": DEFLATED_TIFF}


AnyPicture = Image.Image | np.ndarray  # or an array of jax; see as_picture


class Picture(NamedTuple):
  """What a codec is given, and gives back."""
  image: np.ndarray            # (H, W, 3) uint8
  icc_profile: bytes | None    # the color space of its RGB values, as the file had it; None is sRGB for most programs
  other_color: str = ""       # what else the file says of its colors, in words: "gAMA and cHRM"


def load_image(path: str | os.PathLike | IO[bytes]) -> np.ndarray:
  """The picture at `path`, (H, W, 3) uint8; ImageError when it is broken or holds more than 8-bit RGB."""
  return load_picture(path).image


def load_picture(path: str | os.PathLike | IO[bytes], pixels_max: int = PIXELS_MAX) -> Picture:
  """The picture at `path` (or in a file object) and its color; ImageError as in `load_image`, and above `pixels_max`.

  The profile of a grayscale picture does not describe the RGB that the picture becomes, and is left out.
  """
  with _one_line_errors(path), open_picture(path) as image:
    return _picture(str(path), image, pixels_max)


def as_picture(image: AnyPicture) -> Picture:
  """A picture in memory: what PIL.Image.open gives, or an array (H, W, 3), uint8 or floats in [0, 1].

  Pillow's are brought to RGB as those of files are, and keep their color profile. Floats become the nearest of the 256
  levels, round(255 x) with halves to even: an array of image / 255 becomes image again. Floats that miss [0, 1] by less
  than half a level, as rounding errors do, become the nearest level too. ImageError for anything else, also for a
  masked array in which something is masked.
  """
  if isinstance(image, Image.Image):
    with _one_line_errors("the picture"):
      return _picture("the picture", image, PIXELS_MAX)
  if np.ma.is_masked(image):
    raise ImageError(f"got an image with {np.ma.count_masked(image)} masked values; wanted none, as in "
                     "image.filled(0)")
  array = np.asarray(image)
  if array.ndim != 3 or array.shape[2] != 3 or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
    raise ImageError(f"got an image {array.shape} {array.dtype}; wanted (H, W, 3), uint8 or floats in [0, 1], or one "
                     "of Pillow's")
  if array.dtype != np.uint8:
    if array.size and not (-HALF_A_LEVEL < array.min() and array.max() < 1 + HALF_A_LEVEL):
      raise ImageError(f"got an image of floats from {array.min():g} to {array.max():g}; wanted floats in [0, 1]")
    array = np.rint(np.clip(array.astype(np.promote_types(array.dtype, np.float32)), 0, 1) * 255).astype(np.uint8)
  return Picture(array, None)


def _picture(name: str, image: Image.Image, pixels_max: int) -> Picture:
  refuse_what_rgb_cannot_hold(name, image)
  check_pixels(name, image, pixels_max)
  profile, other = image.info.get("icc_profile"), color_beside_the_profile(image)
  scale_transparent_gray(image)
  return Picture(np.array(on_white(upright(image))), profile if is_of_rgb(profile) else None, other)


@contextlib.contextmanager
def _one_line_errors(name):
  """Whatever goes wrong becomes an ImageError of that name."""
  try:
    yield
  except ImageError:
    raise
  except FileNotFoundError:
    raise ImageError(f"{name}: no such file; wanted an image ({' '.join(EXTENSIONS)})") from None
  except Exception as error:   # Pillow's decoders raise OSError, SyntaxError, struct.error
    raise ImageError(f"{name}: cannot be read as an image ({reason(name, error)})") from error


def list_images(folder: str | os.PathLike, warn: Callable[[str], None] = log.warning) -> list[Path]:
  """The images in `folder` and below (by extension, see list_files), sorted; ImageError if there is none.

  `warn` is called with a line when files were left out that are images, or may be: how many, and why.
  """
  folder = as_path(folder)
  if not folder.is_dir():
    came = "is not a folder" if folder.exists() else "no such folder"
    raise ImageError(f"{folder}: {came}; wanted a folder of images")
  listing = list_files(folder, _is_image_name)
  left_out = f"left out {listing.summary()}" if listing.left_out else ""
  if not listing.files:
    raise ImageError(f"{folder}: holds no image{f', {left_out}' if left_out else ''}; "
                     f"wanted files ending in {' '.join(EXTENSIONS)}")
  if left_out:
    warn(f"{folder}: {left_out}")
  return listing.files


def _is_image_name(name: str) -> bool | str:
  """Whether files of this name are read, or why they are not."""
  suffix = Path(name).suffix.lower()
  if suffix in HEIC_EXTENSIONS:
    return reads_heic() or HEIC_NOT_READ
  return f"{suffix}, which is not read" if suffix in NOT_READ else suffix in EXTENSIONS


def check_lossless(path: str | os.PathLike) -> None:
  """ImageError unless `save_image` can write a file of this name; to be asked before the work."""
  suffix = Path(path).suffix
  if suffix.lower() not in LOSSLESS:
    raise ImageError(f"{path}: cannot write {suffix or 'a file without extension'} without loss; "
                     f"wanted {' '.join(LOSSLESS)}")


def save_image(path: str | os.PathLike, image: np.ndarray, icc_profile: bytes | None = None) -> None:
  """Writes (H, W, 3) uint8 without loss, in the format of the extension, whole or not at all; see `picture_file`."""
  content = picture_file(path, image, icc_profile)
  try:
    write_whole(path, content)
  except OSError as error:
    raise ImageError(f"{path}: cannot be written ({error.strerror})") from error


def picture_file(name: str | os.PathLike, image: np.ndarray, icc_profile: bytes | None = None) -> bytes:
  """The file of (H, W, 3) uint8, without loss, in the format of the extension of `name`.

  The color profile goes into the file, except into a BMP. ImageError for a picture that the format cannot hold.
  """
  check_lossless(name)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise ImageError(f"{name}: got an array {image.shape} {image.dtype}; wanted (H, W, 3) uint8")
  image_format, options = LOSSLESS[Path(name).suffix.lower()]
  if icc_profile is not None and image_format != "BMP":
    options = options | {"icc_profile": icc_profile}
  content = io.BytesIO()       # in memory, so that a full disk is met by write_whole, and by no plugin
  try:
    Image.fromarray(image).save(content, format=image_format, **options)
  except (OSError, ValueError, struct.error) as error:
    raise ImageError(f"{name}: cannot be written ({error})") from error
  return content.getvalue()
