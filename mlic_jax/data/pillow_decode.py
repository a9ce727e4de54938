"""What Pillow makes of a picture file, up to the RGB that it stands for; and what of it RGB cannot hold.

Pillow opens more than it gets right. What it would get wrong is refused here by what the file says of itself;
tools/image_formats.py tries all layouts of PNG and TIFF.
"""
import contextlib
import functools
import importlib.util
import struct
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

PIXELS_MAX = 512 * 10**6  # of an image, in a file of any format: a decoder needs some hundred bytes a pixel
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")                   # whatever the extension says
HEIC = "HEIF"                                                      # Pillow's name, with pillow-heif alone
HEIC_EXTENSIONS = (".heic", ".heif")
HEIC_NOT_READ = "HEIC, which needs pip install pillow-heif"
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa")   # Pillow's names of what RGB can hold

ORIENTATION = 0x0112             # of EXIF
TURN = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90}

# Tags of TIFF, and its photometric interpretations with the number of their channels.
BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, PLANAR, COLOUR_MAP, EXTRA, SAMPLE_FORMAT = (
    258, 259, 262, 266, 277, 284, 320, 338, 339)
CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
SEPARATE, UNCOMPRESSED, UNSIGNED, YCBCR = 2, 1, 1, 6
TIFF_COLOUR = {301: "TransferFunction", 318: "WhitePoint", 319: "PrimaryChromaticities"}

# What PNG's color chunks say in a file whose values are sRGB: code points of H.273, 1/2.2, and x, y of white and RGB.
SRGB_PRIMARIES, SRGB_TRANSFER = (1, 2), (1, 2, 6, 13)   # of H.273; 2 is unknown, 1 and 6 are what cameras say of sRGB
SRGB_CICP, SRGB_GAMMA = bytes([1, 13, 0, 1]), 45455
SRGB_CHROMATICITIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


class ImageError(ValueError):
  """An image that cannot be read, held or written; one line with the file, what came and what was wanted."""


# Limits in Pillow's modules: none for pixels (check_pixels counts them before they are decoded), and for a single text
# or color profile of a PNG the bytes that Pillow allows for all texts. Pillow's own are 89 megapixels and 1 MiB.
TEXT_MAX = 2**26
LIMITS = {(Image, "MAX_IMAGE_PIXELS"): None, (PngImagePlugin, "MAX_TEXT_CHUNK"): TEXT_MAX,
          (PngImagePlugin, "MAX_TEXT_MEMORY"): TEXT_MAX}

_lock, _users = threading.Lock(), 0
_usual_limits: dict[tuple[Any, str], Any] = {}


@contextlib.contextmanager
def raised_limits() -> Iterator[None]:
  """Sets LIMITS while the block runs.

  They are globals of Pillow. Other code that uses Pillow has the usual ones again when the last thread has left.
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
  """Image.open within LIMITS, of a path or of a file object; `load` decodes the pixels.

  HEIC is read where pillow-heif is installed."""
  with raised_limits():
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
  """Whether Pillow reads HEIC here: pillow-heif is installed, and registered by this call."""
  if importlib.util.find_spec("pillow_heif") is None:
    return False
  importlib.import_module("pillow_heif").register_heif_opener()
  return True


def _is_heic(file) -> bool:
  """Whether a path or a file object holds HEIC, by its first box (ISO/IEC 23008-12, 10.2)."""
  with contextlib.nullcontext(file) if hasattr(file, "read") else open(file, "rb") as opened:
    opened.seek(0)
    head = opened.read(12)
    opened.seek(0)
  return head[4:8] == b"ftyp" and head[8:] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx")


def load(image: Image.Image) -> None:
  """Decodes the pixels. TIFF checks the limits again, and PNG may have texts behind the pixels."""
  with raised_limits():
    image.load()


def reason(file, error: Exception) -> str:
  """Why Pillow did not read a file, in one line."""
  if isinstance(error, UnidentifiedImageError):
    return "of no known format, or of a layout that is not known"
  if "MAX_TEXT_" in str(error):
    return f"a text or color profile has more than {TEXT_MAX >> 20} MiB"
  return " ".join(str(error).replace(repr(str(file)), "the file").split()) or type(error).__name__


def check_8bit_rgb(name, image: Image.Image) -> None:
  """ImageError for more than 8 bits, other colors than RGB, and layouts that Pillow gets wrong."""
  wanted = "wanted an 8-bit RGB or grayscale image"
  depth = _bits_per_channel(image)
  if depth > 8:
    raise ImageError(f"{name}: {depth} bits per channel; {wanted}")
  if image.mode not in MODES:
    raise ImageError(f"{name}: color mode {image.mode}; {wanted}")
  if hasattr(image, "tag_v2") and (what := _doubtful_in_tiff(image.mode, image.tag_v2)):
    raise ImageError(f"{name}: {what}; {wanted}")


def check_pixels(name, image: Image.Image, pixels_max: int = PIXELS_MAX) -> None:
  """ImageError for an opened image of more pixels; to be called before they are decoded."""
  count = image.width * image.height
  if count > pixels_max:
    raise ImageError(f"{name}: {image.width}x{image.height}, {count / 1e6:.0f} megapixels; "
                     f"the limit is {pixels_max / 1e6:.0f}")


def _bits_per_channel(image: Image.Image) -> int:
  """Bits per channel in the file: Pillow opens 16-bit RGB as 8-bit without a word, but its raw mode or tag tells."""
  if hasattr(image, "tag_v2"):                       # a TIFF, as it was opened
    return max(image.tag_v2.get(BITS, (1,)))
  if image.mode in ("I", "F"):
    return 32
  if image.format == HEIC:                           # which is opened as 8 bits, whatever it has
    return image.info.get("bit_depth", 8)
  tiles = getattr(image, "tile", [])                 # which a picture that was made in memory does not have
  raw_modes = [args if isinstance(args, str) else args[0] for *_, args in tiles if args]
  # The 16 bits of a BMP are those of a pixel.
  return 16 if image.format != "BMP" and any(";16" in str(mode) for mode in [image.mode, *raw_modes]) else 8


def _doubtful_in_tiff(mode: str, tags) -> str | None:
  """What Pillow would read wrongly, or nobody can know, by the tags of a TIFF file; None if there is nothing."""
  photometric, samples, extra = tags.get(PHOTOMETRIC, 0), tags.get(SAMPLES, 1), tags.get(EXTRA, ())
  if any(each != UNSIGNED for each in tags.get(SAMPLE_FORMAT, ())):
    return "signed or floating-point samples"
  if samples > CHANNELS.get(photometric, samples) + len(extra):
    return f"{samples} channels, and no word of what the last means"
  if photometric == 3 and max(tags.get(COLOUR_MAP, (0,))) in range(1, 256):
    return "a palette of 8-bit values, where 16-bit ones are due"
  if tags.get(PLANAR, 1) != SEPARATE:
    return None
  if tags.get(COMPRESSION, 1) == UNCOMPRESSED:       # Pillow then takes a plane for bytes as they are
    if photometric == YCBCR:                         # and before its release 13 three of them for RGB
      return "uncompressed planes of YCbCr"
    plain = set(tags.get(BITS, (1,))) == {8} and tags.get(FILL_ORDER, 1) == 1 and photometric != 0
    return None if plain else "uncompressed planes of other samples than bytes"
  return "a plane of alpha beside a single one" if mode in ("LA", "La", "PA") else None


def apply_orientation(image: Image.Image) -> Image.Image:
  """The picture as its EXIF orientation wants it seen; 1 where EXIF cannot be read, for nothing else is wanted of it.

  Not ImageOps.exif_transpose, which writes EXIF anew and fails on values that it cannot write.
  """
  load(image)                                        # TIFF is turned here
  try:
    orientation = image.getexif().get(ORIENTATION, 1)
  except Exception:                                  # whatever the damage leads Pillow to
    orientation = 1
  return image.transpose(TURN[orientation]) if orientation in TURN else image


def composite_on_white(image: Image.Image) -> Image.Image:
  """RGB, with what is transparent on white."""
  if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
    return image.convert("RGB")                      # a fourth byte that nobody filled, and every viewer ignores
  if image.mode == "La":
    image = image.convert("LA")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image.convert("RGB")


def scale_transparent_gray(image: Image.Image) -> None:
  """A transparent gray of a PNG with 2 or 4 bits is one of 4 or 16 levels, where Pillow has 256 of the picture."""
  bits = {"L;2": 2, "L;4": 4}.get(next((args for *_, args in getattr(image, "tile", [])), ""))
  if image.format == "PNG" and bits and isinstance(image.info.get("transparency"), int):
    image.info["transparency"] *= 255 // (2**bits - 1)


# --- color --------------------------------------------------------------------------

def is_rgb_profile(profile: bytes | None) -> bool:
  """Whether the header of an ICC profile says that it is one, and of RGB (ICC.1:2022, 7.2)."""
  return profile is not None and profile[36:40] == b"acsp" and profile[16:20] == b"RGB "


def describe_other_color(image: Image.Image) -> str:
  """What an opened file says of its colors that no ICC profile of RGB says, in words; "" if they are taken for sRGB.

  A picture that says nothing is taken for sRGB by most programs, so nothing is lost of one that says sRGB.
  """
  profile = image.info.get("icc_profile")
  said = [] if profile is None or is_rgb_profile(profile) else ["a color profile that is not of RGB"]
  if hasattr(image, "tag_v2") and profile is None:
    said = [name for tag, name in TIFF_COLOUR.items() if tag in image.tag_v2]
  nclx = image.info.get("nclx_profile") if image.format == HEIC and profile is None else None
  if nclx and (nclx["color_primaries"] not in SRGB_PRIMARIES or nclx["transfer_characteristics"] not in SRGB_TRANSFER):
    return "nclx"
  file = getattr(image, "fp", None)                  # None of a picture in memory
  if image.format != "PNG" or file is None or file.closed:
    return " and ".join(said)
  chunks = _png_chunks(file)
  if b"cICP" in chunks:                              # before all others, by the third edition of PNG (4.3)
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
  """The chunks of a PNG before its data, the color profile apart, by name; the file is left where it was."""
  place, chunks = file.tell(), {}
  file.seek(8)
  while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
    size = int.from_bytes(head[:4], "big")
    if size <= 1024:
      chunks[head[4:]] = file.read(size)
      size = 0
    file.seek(size + 4, 1)
  file.seek(place)
  return chunks
