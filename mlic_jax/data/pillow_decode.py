"""Decoding of image files by Pillow, conversion to RGB, and checks of contents that RGB cannot represent.

Pillow opens some files that it decodes wrongly. They are refused here by their headers. tools/image_formats.py tests
all layouts of PNG and TIFF.
"""
import contextlib
import functools
import importlib.util
import struct
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

PIXELS_MAX = 512 * 10**6  # limit for an image of any format; the codec needs some hundred bytes per pixel
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")            # for all extensions; see open_image
HEIC = "HEIF"                                                      # name of the format in Pillow, with pillow-heif
HEIC_EXTENSIONS = (".heic", ".heif")
HEIC_NOT_READ = "HEIC, which needs pip install pillow-heif"
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa")   # modes of Pillow that convert to RGB without loss

STRIP = 256                      # rows that are copied at a time
ORIENTATION = 0x0112             # tag of EXIF
TRANSPOSE = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90}

# Tags of TIFF, and its photometric interpretations with the number of their channels.
BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, PLANAR, COLOR_MAP, EXTRA, SAMPLE_FORMAT = (
    258, 259, 262, 266, 277, 284, 320, 338, 339)
CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
SEPARATE, UNCOMPRESSED, UNSIGNED, YCBCR = 2, 1, 1, 6
TIFF_COLOR = {301: "TransferFunction", 318: "WhitePoint", 319: "PrimaryChromaticities"}

# Values of the color chunks of PNG for sRGB: code points of H.273, gamma 1/2.2, and x, y of white and RGB.
SRGB_PRIMARIES, SRGB_TRANSFER = (1, 2), (1, 2, 6, 13)   # of H.273; 2 is unknown, and cameras write 1 and 6 for sRGB
SRGB_CICP, SRGB_GAMMA = bytes([1, 13, 0, 1]), 45455
SRGB_CHROMATICITIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


class ImageError(ValueError):
  """An image that cannot be read, represented or written; one line with the file, the problem and the wanted input."""


# Limits in modules of Pillow: none for pixels (check_pixels counts them before decoding), and for a single text or
# color profile of a PNG the limit of Pillow for all texts. The defaults of Pillow are 89 megapixels and 1 MiB.
TEXT_MAX = 2**26
LIMITS = {(Image, "MAX_IMAGE_PIXELS"): None, (PngImagePlugin, "MAX_TEXT_CHUNK"): TEXT_MAX,
          (PngImagePlugin, "MAX_TEXT_MEMORY"): TEXT_MAX}

_lock, _users = threading.Lock(), 0
_usual_limits: dict[tuple[Any, str], Any] = {}


@contextlib.contextmanager
def raised_limits() -> Iterator[None]:
  """Context manager that sets LIMITS, which are globals of Pillow.

  The previous limits are restored when the last thread leaves the block.
  """
  global _users
  with _lock:
    if not _users:
      _usual_limits.update({(module, name): getattr(module, name) for module, name in LIMITS})
      _set(LIMITS)
    _users += 1
  try:
    yield
  finally:
    with _lock:
      _users -= 1
      if not _users:
        _set(_usual_limits)


def _set(limits: dict[tuple[ModuleType, str], int | None]) -> None:
  for (module, name), value in limits.items():
    setattr(module, name, value)


def open_image(file, formats: tuple[str, ...] | None = FORMATS) -> ImageFile.ImageFile:
  """Open a path or file object by Image.open with LIMITS; `load` decodes the pixels.

  HEIC needs pillow-heif."""
  with raised_limits():
    Image.preinit()   # imports the first four formats; Image.open imports all, if it comes to one that is not imported
    try:
      return Image.open(file, formats=formats)
    except UnidentifiedImageError:
      if not _is_heic(file):
        raise
      if not reads_heic():
        raise ImageError(f"{file}: {HEIC_NOT_READ}") from None
      return Image.open(file, formats=(HEIC,))


@functools.cache
def reads_heic() -> bool:
  """Return whether pillow-heif is installed, and register it."""
  if importlib.util.find_spec("pillow_heif") is None:
    return False
  importlib.import_module("pillow_heif").register_heif_opener()
  return True


def _is_heic(file) -> bool:
  """Return whether a path or file object is HEIC, by its first box (ISO/IEC 23008-12, 10.2)."""
  with contextlib.nullcontext(file) if hasattr(file, "read") else open(file, "rb") as opened:
    opened.seek(0)
    head = opened.read(12)
    opened.seek(0)
  return head[4:8] == b"ftyp" and head[8:] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx")


def load(image: Image.Image) -> None:
  """Decode the pixels with LIMITS. TIFF checks the limits again, and PNG may have texts after the pixels."""
  with raised_limits():
    image.load()


def error_reason(file, error: Exception) -> str:
  """Return in one line why Pillow did not read a file."""
  if isinstance(error, UnidentifiedImageError):
    return "unknown format or layout"
  if "MAX_TEXT_" in str(error):
    return f"a text or color profile has more than {TEXT_MAX >> 20} MiB"
  return " ".join(str(error).replace(repr(str(file)), "the file").split()) or type(error).__name__


def check_8bit_rgb(name, image: Image.Image) -> None:
  """Raise an ImageError for more than 8 bits, for other color spaces than RGB, and for layouts that Pillow misreads."""
  wanted = "wanted an 8-bit RGB or grayscale image"
  depth = _bits_per_channel(image)
  if depth > 8:
    raise ImageError(f"{name}: {depth} bits per channel; {wanted}")
  if image.mode not in MODES:
    raise ImageError(f"{name}: color mode {image.mode}; {wanted}")
  if hasattr(image, "tag_v2") and (what := _unsupported_in_tiff(image.mode, image.tag_v2)):
    raise ImageError(f"{name}: {what}; {wanted}")


def check_pixels(name, image: Image.Image, pixels_max: int = PIXELS_MAX) -> None:
  """Raise an ImageError for an opened image with more than `pixels_max` pixels, before they are decoded."""
  count = image.width * image.height
  if count > pixels_max:
    raise ImageError(f"{name}: {image.width}x{image.height}, {count / 1e6:.0f} megapixels; "
                     f"the limit is {pixels_max / 1e6:.0f}")


def _bits_per_channel(image: Image.Image) -> int:
  """Return the bits per channel in the file, from raw mode or tags. Pillow opens 16-bit RGB as 8-bit silently."""
  if hasattr(image, "tag_v2"):                       # an opened TIFF
    return max(image.tag_v2.get(BITS, (1,)))
  if image.format == "PPM" and image.mode != "F":    # Pillow scales all largest values to 255, or to 65535 in mode I
    largest = [args[1] for *_, args in getattr(image, "tile", []) if isinstance(args, tuple)]
    return max(each.bit_length() for each in largest or [0xffff if image.mode == "I" else 0xff])
  if image.mode in ("I", "F"):
    return 32
  if image.format == HEIC:                           # Pillow opens all depths as 8 bits
    return image.info.get("bit_depth", 8)
  tiles = getattr(image, "tile", [])                 # images in memory have none
  raw_modes = [args if isinstance(args, str) else args[0] for *_, args in tiles if args]
  # In a BMP, 16 are the bits of a pixel.
  return 16 if image.format != "BMP" and any(";16" in str(mode) for mode in [image.mode, *raw_modes]) else 8


def _unsupported_in_tiff(mode: str, tags) -> str | None:
  """Return the reason why a TIFF file is misread or ambiguous, by its tags; None if it is supported."""
  photometric, samples, extra = tags.get(PHOTOMETRIC, 0), tags.get(SAMPLES, 1), tags.get(EXTRA, ())
  if any(each != UNSIGNED for each in tags.get(SAMPLE_FORMAT, ())):
    return "signed or floating-point samples"
  if samples > CHANNELS.get(photometric, samples) + len(extra):
    return f"{samples} channels, the last of unspecified meaning"
  if photometric == 3 and max(tags.get(COLOR_MAP, (0,))) in range(1, 256):
    return "a palette of 8-bit values instead of 16-bit ones"
  if tags.get(PLANAR, 1) != SEPARATE:
    return None
  if tags.get(COMPRESSION, 1) == UNCOMPRESSED:       # Pillow reads such planes as bytes
    if photometric == YCBCR:                         # which Pillow before 13 reads as RGB
      return "uncompressed planes of YCbCr"
    plain = set(tags.get(BITS, (1,))) == {8} and tags.get(FILL_ORDER, 1) == 1 and photometric != 0
    return None if plain else "uncompressed planes of samples that are not bytes"
  return "separate planes of gray and alpha" if mode in ("LA", "La", "PA") else None


def apply_orientation(image: Image.Image) -> Image.Image:
  """Return the image in its EXIF orientation, which is 1 if EXIF cannot be read.

  ImageOps.exif_transpose is not used, because it writes EXIF and fails on invalid values.
  """
  load(image)                                        # applies the orientation of TIFF
  orientation = read_orientation(image)
  return image if orientation is None else image.transpose(orientation)


def read_orientation(image: Image.Image) -> Image.Transpose | None:
  """Return how an image has to be transposed, by its EXIF; None for an image that is upright."""
  try:
    return TRANSPOSE.get(image.getexif().get(ORIENTATION, 1))
  except Exception:                                  # damaged EXIF can raise any error
    return None


def composite_on_white(image: Image.Image) -> Image.Image:
  """Return the image in RGB, composited on white if it has transparency."""
  if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
    return image.convert("RGB")                      # an unused fourth byte, which viewers ignore
  if image.mode == "La":
    image = image.convert("LA")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image if image.mode == "RGB" else image.convert("RGB")


def to_array(image: Image.Image) -> np.ndarray:
  """Return the pixels of an RGB image, (H, W, 3) uint8, copied in strips: NumPy would need three times their memory."""
  pixels = np.empty((image.height, image.width, 3), np.uint8)
  for top in range(0, image.height, STRIP):
    bottom = min(top + STRIP, image.height)
    pixels[top:bottom] = image.crop((0, top, image.width, bottom))
  return pixels


def scale_transparent_gray(image: Image.Image) -> None:
  """Scale the transparent gray of a PNG with 2 or 4 bits to 256 levels, as Pillow scales its pixels."""
  bits = {"L;2": 2, "L;4": 4}.get(next((args for *_, args in getattr(image, "tile", [])), ""))
  if image.format == "PNG" and bits and isinstance(image.info.get("transparency"), int):
    image.info["transparency"] *= 255 // (2**bits - 1)


# --- color --------------------------------------------------------------------------

def is_rgb_profile(profile: bytes | None) -> bool:
  """Return whether `profile` is an ICC profile of RGB, by its header (ICC.1:2022, 7.2)."""
  return profile is not None and profile[36:40] == b"acsp" and profile[16:20] == b"RGB "


def describe_other_color(image: Image.Image) -> str:
  """Return the color information of an opened file besides an ICC profile of RGB; "" if it is sRGB.

  Most programs assume sRGB without color information, so sRGB information need not be reported.
  """
  profile = image.info.get("icc_profile")
  said = [] if profile is None or is_rgb_profile(profile) else ["a color profile that is not of RGB"]
  if hasattr(image, "tag_v2") and profile is None:
    said = [name for tag, name in TIFF_COLOR.items() if tag in image.tag_v2]
  nclx = image.info.get("nclx_profile") if image.format == HEIC and profile is None else None
  if nclx and (nclx["color_primaries"] not in SRGB_PRIMARIES or nclx["transfer_characteristics"] not in SRGB_TRANSFER):
    return "nclx"
  file = getattr(image, "fp", None)                  # None for images in memory
  if image.format != "PNG" or file is None or file.closed:
    return " and ".join(said)
  chunks = _png_chunks(file)
  if b"cICP" in chunks:                              # has priority, by the third edition of PNG (4.3)
    return "" if chunks[b"cICP"] == SRGB_CICP else "cICP"
  if profile is not None or b"sRGB" in chunks:
    return " and ".join(said)
  gamma, chromaticities = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
  said = ["gAMA"] if len(gamma) == 4 and abs(struct.unpack(">I", gamma)[0] - SRGB_GAMMA) > 500 else []
  if len(chromaticities) == 32:
    values = struct.unpack(">8I", chromaticities)
    said += ["cHRM"] if any(abs(a - b) > 100 for a, b in zip(values, SRGB_CHROMATICITIES)) else []
  return " and ".join(said)


def _png_chunks(file) -> dict[bytes, bytes]:
  """Return the chunks of a PNG before its data as {name: content}, without large ones. The file position stays."""
  position, chunks = file.tell(), {}
  file.seek(8)
  while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
    size = int.from_bytes(head[:4], "big")
    if size <= 1024:
      chunks[head[4:]] = file.read(size)
      size = 0
    file.seek(size + 4, 1)
  file.seek(position)
  return chunks
