"""The .mlic file: one header, one coded stream, one checksum. docs/format.md has it byte by byte."""
import struct
import zlib
from typing import NamedTuple

MAGIC = b"MLIC"
VERSION = 1
HEADER = struct.Struct(">4sBB8sIIHI")  # magic, version, flags, fingerprint, height, width, quality, bytes of the stream
CHECKSUM = struct.Struct(">I")         # CRC-32 of every byte before it
QUALITY_STEPS = 256                    # the file holds quality in 256ths, so that both sides have the same number
PIXELS_MAX = 512 * 10**6               # a decoder needs some hundred bytes a pixel


class BitstreamError(ValueError):
  """A file that cannot be decoded; one line that says what came and what was wanted."""


class Bitstream(NamedTuple):
  """What a file holds. `write` and `parse` are inverses."""
  fingerprint: bytes        # 8 bytes, of the checkpoint that wrote the stream
  height: int               # of the picture, before padding
  width: int
  quality: float | None     # a multiple of 1 / QUALITY_STEPS; None for a single-rate checkpoint
  stream: bytes             # the output of the range coder


def round_quality(quality: float) -> float:
  """The nearest quality that a file can hold."""
  return round(quality * QUALITY_STEPS) / QUALITY_STEPS


def check_size(height: int, width: int, pixels_max: int = PIXELS_MAX) -> None:
  """BitstreamError unless a picture of this size may be coded."""
  if height < 1 or width < 1:
    raise BitstreamError(f"the picture is {height}x{width}; at least 1x1 is wanted")
  if height * width > pixels_max:
    raise BitstreamError(f"the picture is {height}x{width}, {height * width / 1e6:.0f} megapixels; "
                         f"the limit is {pixels_max / 1e6:.0f}")


def write(content: Bitstream) -> bytes:
  """The bytes of a file."""
  check_size(content.height, content.width)
  quality = 0 if content.quality is None else round(content.quality * QUALITY_STEPS)
  head = HEADER.pack(MAGIC, VERSION, 0, content.fingerprint, content.height, content.width, quality,
                     len(content.stream))
  body = head + content.stream
  return body + CHECKSUM.pack(zlib.crc32(body))


def parse(blob: bytes, pixels_max: int = PIXELS_MAX) -> Bitstream:
  """The content of a file, every field checked before anything is decoded. BitstreamError for what is none."""
  if not blob.startswith(MAGIC):
    came = f"it begins with {bytes(blob[:4])!r}, wanted {MAGIC!r}" if blob else "it is empty"
    raise BitstreamError(f"not a .mlic file: {came}")
  if len(blob) > len(MAGIC) and blob[len(MAGIC)] > VERSION:
    raise BitstreamError(f"the file has format version {blob[len(MAGIC)]}; this program reads up to {VERSION}")
  if len(blob) < HEADER.size:
    raise BitstreamError(f"the file is cut short: {len(blob)} bytes, its header alone has {HEADER.size}")
  _, version, flags, fingerprint, height, width, quality, length = HEADER.unpack_from(blob)
  end = HEADER.size + length
  if len(blob) < end + CHECKSUM.size:
    raise BitstreamError(f"the file is cut short: {len(blob)} bytes of {end + CHECKSUM.size}")
  if len(blob) > end + CHECKSUM.size:
    raise BitstreamError(f"the file is damaged: {len(blob)} bytes, its header says {end + CHECKSUM.size}")
  if CHECKSUM.unpack_from(blob, end)[0] != zlib.crc32(blob[:end]):
    raise BitstreamError("the file is damaged: its checksum does not fit its content")
  if version < 1 or flags:
    raise BitstreamError(f"version {version} with flags {flags:#04x}; wanted version {VERSION} with flags 0x00")
  check_size(height, width, pixels_max)
  quality = quality / QUALITY_STEPS if quality else None
  return Bitstream(fingerprint, height, width, quality, bytes(blob[HEADER.size:end]))
