"""Image files to arrays (H, W, 3) uint8 of RGB, and back.

Files are converted to RGB if this loses nothing: grayscale, 1-bit and palette images become RGB, transparency (RGBA,
LA, a transparent palette entry) is composited on white, and the EXIF orientation is applied. Contents that 8-bit RGB
cannot represent (16 bits per channel, floats, CMYK, Lab) are refused, so that a codec is not evaluated on changed
pixels. The first frame or page of a file is read.
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
  apply_orientation,
  check_8bit_rgb,
  check_pixels,
  composite_on_white,
  describe_other_color,
  error_reason,
  is_rgb_profile,
  open_image,
  reads_heic,
  scale_transparent_gray,
  to_array,
)
from mlic_jax.paths import as_path

log = logging.getLogger(__name__)

__all__ = ["EXTENSIONS", "FORMATS", "LOSSLESS", "MODES", "PIXELS_MAX", "ImageError", "ImageLike", "LoadedImage",
           "check_lossless", "encode_lossless", "list_images", "load_image", "load_image_with_profile", "save_image",
           "to_loaded_image"]

HALF_LEVEL = 1 / 510  # half of a uint8 level, for images in [0, 1]
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
              ".pbm", ".pnm")
# Extensions of image files that are not supported, and reported if they are in a folder.
NOT_READ = (".gif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".psd", ".tga", ".exr", ".hdr",
            ".svg", ".ico", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw")

# Lossless formats of save_image.
DEFLATED_TIFF = ("TIFF", {"compression": "tiff_deflate"})
LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}), ".webp": ("WEBP", {"lossless": True}), ".bmp": ("BMP", {}),
    ".tif": DEFLATED_TIFF, ".tiff": DEFLATED_TIFF}


ImageLike = Image.Image | np.ndarray  # JAX arrays, too; see to_loaded_image


class LoadedImage(NamedTuple):
  """An image and its color information."""
  image: np.ndarray            # (H, W, 3) uint8
  icc_profile: bytes | None    # profile of the file; most programs assume sRGB for None
  other_color: str = ""        # color information besides a profile, such as "gAMA and cHRM"


def load_image(path: str | os.PathLike | IO[bytes]) -> np.ndarray:
  """Return the image at `path`, (H, W, 3) uint8. ImageError if it is broken, or more than 8-bit RGB."""
  return load_image_with_profile(path).image


def load_image_with_profile(path: str | os.PathLike | IO[bytes], pixels_max: int = PIXELS_MAX) -> LoadedImage:
  """Return the image at `path` (or in a file object) with its color information.

  The profile of a grayscale image is left out, because it does not describe RGB values. ImageError as in `load_image`,
  and for more than `pixels_max` pixels.
  """
  with one_line_errors(path), open_image(path) as image:
    return from_pil(str(path), image, pixels_max)


def to_loaded_image(image: ImageLike) -> LoadedImage:
  """Convert a PIL image, or an array (H, W, 3) of uint8 or of floats in [0, 1].

  PIL images are converted to RGB as files are, and their color profile stays. Floats become the nearest of the 256
  levels, round(255 x) with halves to even, so image / 255 becomes image again. Floats outside [0, 1] by less than half
  a level, as from rounding errors, become the nearest level. ImageError for other arrays, and for masked values.
  """
  if isinstance(image, Image.Image):
    with one_line_errors("the image"):
      return from_pil("the image", image, PIXELS_MAX)
  if np.ma.is_masked(image):
    raise ImageError(f"got an image with {np.ma.count_masked(image)} masked values; wanted none, as in "
                     "image.filled(0)")
  array = np.asarray(image)
  if array.ndim != 3 or array.shape[2] != 3 or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
    raise ImageError(f"got an image {array.shape} {array.dtype}; wanted (H, W, 3), uint8 or floats in [0, 1], or a PIL "
                     "image")
  if array.dtype != np.uint8:
    if array.size and not (-HALF_LEVEL < array.min() and array.max() < 1 + HALF_LEVEL):
      raise ImageError(f"got an image of floats from {array.min():g} to {array.max():g}; wanted floats in [0, 1]")
    array = np.rint(np.clip(array.astype(np.promote_types(array.dtype, np.float32)), 0, 1) * 255).astype(np.uint8)
  return LoadedImage(array, None)


def from_pil(name: str, image: Image.Image, pixels_max: int) -> LoadedImage:
  """Return the image and the color information of an opened file; errors as in `load_image_with_profile`."""
  check_8bit_rgb(name, image)
  check_pixels(name, image, pixels_max)
  profile, other = image.info.get("icc_profile"), describe_other_color(image)
  scale_transparent_gray(image)
  pixels = to_array(composite_on_white(apply_orientation(image)))
  return LoadedImage(pixels, profile if is_rgb_profile(profile) else None, other)


@contextlib.contextmanager
def one_line_errors(name):
  """Context manager that converts all errors to an ImageError of one line, with that name."""
  try:
    yield
  except ImageError:
    raise
  except FileNotFoundError:
    raise ImageError(f"{name}: no such file; wanted an image ({' '.join(EXTENSIONS)})") from None
  except Exception as error:   # Pillow's decoders raise OSError, SyntaxError, struct.error
    raise ImageError(f"{name}: cannot be read as an image ({error_reason(name, error)})") from error


def list_images(folder: str | os.PathLike, warn: Callable[[str], None] = log.warning) -> list[Path]:
  """Return the sorted images in `folder` and its subfolders, found by extension, see list_files.

  `warn` is called with a line if image files were left out, with their number and the reasons. ImageError if there is
  no image.
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
  """Return whether files of this name are read, or the reason why they are not."""
  suffix = Path(name).suffix.lower()
  if suffix in HEIC_EXTENSIONS:
    return reads_heic() or HEIC_NOT_READ
  return f"{suffix}, which is not read" if suffix in NOT_READ else suffix in EXTENSIONS


def check_lossless(path: str | os.PathLike) -> None:
  """Raise an ImageError if `save_image` does not support the extension of `path`."""
  suffix = Path(path).suffix
  if suffix.lower() not in LOSSLESS:
    raise ImageError(f"{path}: cannot write {suffix or 'a file without extension'} without loss; "
                     f"wanted {' '.join(LOSSLESS)}")


def save_image(path: str | os.PathLike, image: np.ndarray, icc_profile: bytes | None = None) -> None:
  """Write an image (H, W, 3) uint8 atomically and losslessly, in the format of the extension; see `encode_lossless`."""
  content = encode_lossless(path, image, icc_profile)
  try:
    write_whole(path, content)
  except OSError as error:
    raise ImageError(f"{path}: cannot be written ({error.strerror})") from error


def encode_lossless(name: str | os.PathLike, image: np.ndarray, icc_profile: bytes | None = None) -> bytes:
  """Return the content of a lossless file of an image (H, W, 3) uint8, in the format of the extension of `name`.

  All formats but BMP store the color profile. ImageError for an image that the format does not support.
  """
  check_lossless(name)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise ImageError(f"{name}: got an array {image.shape} {image.dtype}; wanted (H, W, 3) uint8")
  image_format, options = LOSSLESS[Path(name).suffix.lower()]
  if icc_profile is not None and image_format != "BMP":
    options = options | {"icc_profile": icc_profile}
  content = io.BytesIO()       # in memory, so that errors of the disk occur in write_whole, and not in a plugin
  try:
    Image.fromarray(image).save(content, format=image_format, **options)
  except (OSError, ValueError, struct.error) as error:
    raise ImageError(f"{name}: cannot be written ({error})") from error
  return content.getvalue()
