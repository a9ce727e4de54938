"""Photographs from and to disk: (H, W, 3) uint8, RGB, and nothing else inside the project.

What a file holds is brought to RGB where that loses nothing: greyscale, 1-bit and palette images become RGB,
transparency (RGBA, LA, a transparent palette entry) is composited on white, and the EXIF orientation is
applied. What 8-bit RGB cannot hold (16 bits a channel, floats, CMYK, Lab) is refused, so that nobody measures a codec
on silently changed pixels. Of a file with several frames or pages the first is read.
"""
import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mlic_jax.files import whole_file
from mlic_jax.paths import as_path, files_below

PIXELS_MAX = 512 * 10**6  # of a picture, in a file of any format: a decoder needs some hundred bytes a pixel
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")                   # whatever the extension says
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa")   # Pillow's names of what RGB can hold

# Pillow warns from 89 megapixels on and refuses from 179; the limit here is that of the file format.
Image.MAX_IMAGE_PIXELS = None

# The formats save_image writes, all of them without loss.
DEFLATED_TIFF = ("TIFF", {"compression": "tiff_deflate"})
LOSSLESS = {".png": ("PNG", {}), ".webp": ("WEBP", {"lossless": True}), ".bmp": ("BMP", {}),
            ".tif": DEFLATED_TIFF, ".tiff": DEFLATED_TIFF}


class ImageError(ValueError):
  """An image that cannot be read, held or written; one line with the file, what came and what was wanted."""


AnyPicture = Image.Image | np.ndarray  # or an array of jax; see as_picture


class Picture(NamedTuple):
  """What a codec is given, and gives back."""
  image: np.ndarray            # (H, W, 3) uint8
  icc_profile: bytes | None    # the colour space of its RGB values, as the file had it; None is sRGB for most programs


def load_image(path: str | os.PathLike) -> np.ndarray:
  """The picture at `path`, (H, W, 3) uint8; ImageError when it is broken or holds more than 8-bit RGB."""
  return load_picture(path).image


def load_picture(path: str | os.PathLike, pixels_max: int = PIXELS_MAX) -> Picture:
  """The picture at `path` with its colour profile; ImageError as in `load_image`, and for more than `pixels_max`.

  The profile of a greyscale picture does not describe the RGB that the picture becomes, and is left out.
  """
  with _one_line_errors(str(path)), Image.open(path, formats=FORMATS) as image:
    return _picture(str(path), image, pixels_max)


def as_picture(image: AnyPicture) -> Picture:
  """A picture in memory: what PIL.Image.open gives, or an array (H, W, 3), uint8 or floats in [0, 1].

  Pillow's are brought to RGB as those of files are, and keep their colour profile. Floats become the nearest of the 256
  levels, round(255 x) with halves to even: an array of image / 255 becomes image again. ImageError for anything else.
  """
  if isinstance(image, Image.Image):
    with _one_line_errors("the picture"):
      return _picture("the picture", image, PIXELS_MAX)
  array = np.asarray(image)
  if array.ndim != 3 or array.shape[2] != 3 or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
    raise ImageError(f"got a picture {array.shape} {array.dtype}; wanted (H, W, 3), uint8 or floats in [0, 1], or one "
                     "of Pillow's")
  if array.dtype != np.uint8:
    if array.size and not (0 <= array.min() and array.max() <= 1):
      raise ImageError(f"got a picture of floats from {array.min():g} to {array.max():g}; wanted floats in [0, 1]")
    array = np.rint(array.astype(np.promote_types(array.dtype, np.float32)) * 255).astype(np.uint8)
  return Picture(array, None)


def _picture(name: str, image: Image.Image, pixels_max: int) -> Picture:
  _refuse_what_rgb_cannot_hold(name, image)
  if image.width * image.height > pixels_max:
    raise ImageError(f"{name}: {image.width}x{image.height}, {image.width * image.height / 1e6:.0f} megapixels; "
                     f"the limit is {pixels_max / 1e6:.0f}")
  profile = image.info.get("icc_profile")
  return Picture(_to_rgb(ImageOps.exif_transpose(image)), profile if _is_of_rgb(profile) else None)


@contextlib.contextmanager
def _one_line_errors(name: str):
  """Whatever goes wrong becomes an ImageError of that name."""
  try:
    yield
  except ImageError:
    raise
  except FileNotFoundError:
    raise ImageError(f"{name}: no such file; wanted an image ({' '.join(EXTENSIONS)})") from None
  except Exception as error:   # Pillow's decoders raise OSError, SyntaxError, struct.error
    reason = " ".join(str(error).replace(repr(name), "the file").split()) or type(error).__name__
    raise ImageError(f"{name}: cannot be read as an image ({reason})") from error


def _refuse_what_rgb_cannot_hold(name: str, image: Image.Image) -> None:
  depth = _bits_per_channel(image)
  if depth > 8:
    raise ImageError(f"{name}: {depth} bits per channel; wanted an 8-bit RGB or greyscale image")
  if image.mode not in MODES:
    raise ImageError(f"{name}: colour mode {image.mode}; wanted an 8-bit RGB or greyscale image")


def _bits_per_channel(image: Image.Image) -> int:
  """Bits per channel in the file: Pillow opens 16-bit RGB as 8-bit without a word, but its raw mode tells."""
  if image.mode in ("I", "F"):
    return 32
  tiles = getattr(image, "tile", [])  # which a picture that was made in memory does not have
  raw_modes = [args if isinstance(args, str) else args[0] for *_, args in tiles if args]
  return 16 if any(";16" in str(mode) for mode in [image.mode, *raw_modes]) else 8


def _is_of_rgb(profile: bytes | None) -> bool:
  """Whether the header of an ICC profile says that it is one, and of RGB (ICC.1:2022, 7.2)."""
  return profile is not None and profile[36:40] == b"acsp" and profile[16:20] == b"RGB "


def _to_rgb(image: Image.Image) -> np.ndarray:
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return np.array(image.convert("RGB"))


def list_images(folder: str | os.PathLike) -> list[Path]:
  """The images in `folder` and below (by extension, no hidden files), sorted; ImageError if there is none."""
  folder = as_path(folder)
  if not folder.is_dir():
    came = "is not a folder" if folder.exists() else "no such folder"
    raise ImageError(f"{folder}: {came}; wanted a folder of images")
  paths = sorted(path for path in files_below(folder)
                 if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))
  if not paths:
    raise ImageError(f"{folder}: holds no image; wanted files ending in {' '.join(EXTENSIONS)}")
  return paths


def check_lossless(path: str | os.PathLike) -> None:
  """ImageError unless `save_image` can write a file of this name; to be asked before the work."""
  suffix = Path(path).suffix
  if suffix.lower() not in LOSSLESS:
    raise ImageError(f"{path}: cannot write {suffix or 'a file without extension'} without loss; "
                     f"wanted {' '.join(LOSSLESS)}")


def save_image(path: str | os.PathLike, image: np.ndarray, icc_profile: bytes | None = None) -> None:
  """Writes (H, W, 3) uint8 without loss, in the format of the extension, whole or not at all.

  The colour profile goes into the file, except into a BMP.
  """
  path = Path(path)
  check_lossless(path)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise ImageError(f"{path}: got an array {image.shape} {image.dtype}; wanted (H, W, 3) uint8")
  image_format, options = LOSSLESS[path.suffix.lower()]
  if icc_profile is not None and image_format != "BMP":
    options = options | {"icc_profile": icc_profile}
  try:
    with whole_file(path) as partial:
      Image.fromarray(image).save(partial, format=image_format, **options)
  except (OSError, ValueError) as error:
    raise ImageError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
