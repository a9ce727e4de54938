"""The .mlic file format: a header, an optional color profile, and one chunk for z and for each slice.

    header   with a checksum of its own                    docs/format.md defines every byte
    blocks   length, checksum, data: the profile (optional), z, slice 1, ..., slice S
             in a portable file, the data of each slice ends with a checksum of its symbols

Each block has its own checksum, so a decoder finds the first block that is incomplete in a truncated file.
"""
import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mlic_jax.coding import blocks
from mlic_jax.coding.blocks import CHECKSUM, LENGTH_MAX, PROFILE_BLOCK, PROFILE_MAX, BitstreamError
from mlic_jax.data.image_io import PIXELS_MAX
from mlic_jax.model.scale_table import SCALE_LEVELS

__all__ = ["CHECKSUM", "LENGTH_MAX", "PROFILE_MAX", "Bitstream", "BitstreamError", "Origin", "PortabilityError",
           "check_header", "check_size", "chunk_ends", "has_profile", "header_size", "pack_chunks", "pack_header",
           "pack_profile", "parse", "parse_chunks", "parse_head", "round_quality", "symbol_checksum", "write"]

MAGIC = b"MLIC"
VERSION_MIN, VERSION = 2, 4            # versions VERSION_MIN to VERSION are read, VERSION is written
TILED_VERSION = 5                      # version 4 with a flag for tiles, written for tiled files only
SKIP_VERSION = 3                       # version 2 with skipped elements; version 4 has a flag for them
HEADER = struct.Struct(">4sBB8sIIHB")  # magic, version, flags, fingerprint, height, width, quality, slices
ORIGIN = struct.Struct(">6B")          # portable files only: epsilon, platform, machine, jax major, minor, patch
SKIPPED = struct.Struct(">B")          # skip coding only: the number of CDF rows whose elements are skipped
TILE = struct.Struct(">II")            # tiled files only: height and width of a tile in pixels
HEADER_SIZE = HEADER.size + CHECKSUM.size      # without ORIGIN, SKIPPED and TILE
HEADER_SIZE_MAX = HEADER_SIZE + ORIGIN.size + SKIPPED.size + TILE.size
SINGLE_CHUNK, WITH_PROFILE, PORTABLE, SKIP, SELECTION_MAP, TILED = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20   # flags
PLATFORMS = ("other", "cpu", "gpu", "tpu")                # a file stores the index
MACHINES = ("other", "x86_64", "aarch64")
SLICES_MAX = 254
PADDED_SIDE = 64                       # transforms of stride 16 pad each side to a multiple of 64
PADDED_SHARE, PADDED_PIXELS = 1.05, 2**20   # a padded image has at most PADDED_SHARE * pixels_max + PADDED_PIXELS
QUALITY_STEPS = 256                    # quality is stored in 1/256, so encoder and decoder use the same number


class PortabilityError(BitstreamError):
  """A portable file decodes to other symbols than were encoded; the message is one line that names both machines."""


class Origin(NamedTuple):
  """The machine that wrote a portable file, and the rounding error margin of the file."""
  epsilon_exponent: int       # e, 0 to 255: a decoder whose level coordinates are off by less than 2^-e finds the rows
  platform: str               # one of PLATFORMS
  machine: str                # one of MACHINES
  jax: tuple[int, int, int]   # version of JAX, each number at most 255

  @property
  def epsilon(self) -> str:
    """The margin as text for messages, such as "2^-12"."""
    return f"2^-{self.epsilon_exponent}"

  def __str__(self) -> str:
    return f"{self.platform} {self.machine}, jax {'.'.join(map(str, self.jax))}"


class Bitstream(NamedTuple):
  """The content of a file. `write` and `parse` are inverses."""
  fingerprint: bytes                # 8 bytes of the checkpoint that wrote the chunks
  height: int                       # of the image in pixels, before padding
  width: int
  quality: float | None             # a multiple of 1 / QUALITY_STEPS; None for a single-rate checkpoint
  num_slices: int                   # S
  chunks: tuple[bytes, ...]         # range coder streams: z, slice 1, ..., slice S; fewer if the file is truncated
  single_chunk: bool = False        # whether one chunk holds z and all slices
  icc_profile: bytes | None = None  # the ICC color profile of the image, unchanged
  origin: Origin | None = None      # None: the file is not portable and decodes only with bit-identical arithmetic
  symbol_checksums: tuple[int, ...] = ()  # in a portable file: `symbol_checksum` of each slice in `chunks`
  skipped_rows: int = 0             # skip coding: elements of y in the first `skipped_rows` CDF rows are not coded
  uses_map: bool = False            # whether the selection map of the model decides which elements are coded
  version: int = VERSION            # of the format; `write` supports VERSION and, with tiles, TILED_VERSION
  tile: tuple[int, int] | None = None     # height and width of a tile in pixels; see tiled_format.py

  @property
  def num_received(self) -> int:
    """The number of complete slices, S unless the file is truncated."""
    return self.num_slices if self.single_chunk else len(self.chunks) - 1

  @property
  def flags(self) -> int:
    """The flags of the header."""
    return (SINGLE_CHUNK * self.single_chunk | WITH_PROFILE * (self.icc_profile is not None)
            | PORTABLE * (self.origin is not None) | SKIP * bool(self.skipped_rows) | SELECTION_MAP * self.uses_map
            | TILED * bool(self.tile))


def round_quality(quality: float) -> float:
  """Rounds a quality to a multiple of 1 / QUALITY_STEPS, as a file stores it."""
  return round(quality * QUALITY_STEPS) / QUALITY_STEPS


def symbol_checksum(anchors: np.ndarray, nonanchors: np.ndarray) -> int:
  """Returns the 16-bit checksum of the int32 symbols of a slice, as portable files store it."""
  big_endian = [symbols.astype(">i4").tobytes() for symbols in (anchors, nonanchors)]
  return zlib.crc32(big_endian[1], zlib.crc32(big_endian[0])) & 0xFFFF


def check_size(height: int, width: int, pixels_max: int = PIXELS_MAX) -> None:
  """Raises BitstreamError unless an image of this size may be coded.

  It may have at most `pixels_max` pixels, and few more once its sides are padded to multiples of PADDED_SIDE: an image
  of 1x512,000,000 would be padded to 33 gigapixels."""
  if height < 1 or width < 1:
    raise BitstreamError(f"the image is {height}x{width}; wanted at least 1x1")
  if height * width > pixels_max:
    raise BitstreamError(f"the image is {height}x{width}, {height * width / 1e6:.0f} megapixels; "
                         f"the limit is {pixels_max / 1e6:.0f}")
  padded = math.prod(-(-side // PADDED_SIDE) * PADDED_SIDE for side in (height, width))
  if padded > PADDED_SHARE * pixels_max + PADDED_PIXELS:
    raise BitstreamError(f"the image is {height}x{width} and is padded to {padded / 1e6:.0f} megapixels; "
                         f"the limit is {pixels_max / 1e6:.0f}")


def write(content: Bitstream) -> bytes:
  """Returns the bytes of a file. BitstreamError if the format cannot hold the content."""
  head = pack_header(content)
  return head + pack_profile(head, content) + pack_chunks(head, content)


def pack_header(content: Bitstream) -> bytes:
  """Returns the header of a file. BitstreamError if it cannot hold the content."""
  check_size(content.height, content.width, pixels_max=2**64)
  if max(content.height, content.width) >= 2**32:
    raise BitstreamError(f"the image is {content.height}x{content.width}; a file holds sides below 2^32")
  if not 1 <= content.num_slices <= SLICES_MAX:
    raise BitstreamError(f"the model has {content.num_slices} slices; a file holds 1 to {SLICES_MAX}")
  quality = 0 if content.quality is None else round(content.quality * QUALITY_STEPS)
  head = HEADER.pack(MAGIC, TILED_VERSION if content.tile else VERSION, content.flags, content.fingerprint,
                     content.height, content.width, quality, content.num_slices)
  if content.origin is not None:
    head += _pack_origin(content.origin)
  if content.skipped_rows:
    head += SKIPPED.pack(content.skipped_rows)
  if content.tile:
    head += TILE.pack(*content.tile)
  return head + CHECKSUM.pack(zlib.crc32(head) & 0xFFFF)


def pack_profile(head: bytes, content: Bitstream) -> bytes:
  """Returns the block of the color profile, which follows the header `head`; no bytes without a profile."""
  if content.icc_profile is None:
    return b""
  return blocks.pack(head, PROFILE_BLOCK, blocks.pack_profile(content.icc_profile), content.single_chunk)


def pack_chunks(head: bytes, content: Bitstream) -> bytes:
  """Returns the blocks of z and of the slices; `head` are the bytes before them that their checksums cover."""
  checks, packed = iter(content.symbol_checksums), []
  for index, stream in enumerate(content.chunks):
    chunk_checks = [CHECKSUM.pack(next(checks)) for _ in range(_num_checks(index, content))]
    packed.append(blocks.pack(head, index, stream + b"".join(chunk_checks), content.single_chunk))
  return b"".join(packed)


def parse(blob: bytes, pixels_max: int = PIXELS_MAX, partial: bool = False) -> Bitstream:
  """Parses a file without tiles and checks all its fields. BitstreamError if the bytes are no such file.

  With `partial`, a file may end early or be damaged in a slice. `parse` then returns the chunks before that slice; z
  has to be complete.
  """
  content, start = parse_head(blob, pixels_max)
  if content.tile:
    raise BitstreamError("the file has tiles, wanted a file without tiles; mlic_jax.coding.tiled_format reads it")
  try:
    return parse_chunks(blob, content, blob[:header_size(blob)], start, partial)
  except BitstreamError as error:
    hint = "" if partial or content.single_chunk else "; --partial (in Python partial=True) decodes the slices before"
    raise BitstreamError(f"{error}{hint}") from None


def parse_head(blob: bytes, pixels_max: int = PIXELS_MAX) -> tuple[Bitstream, int]:
  """Parses the header and the color profile of a file. Returns the content without chunks, and the offset of the next
  byte."""
  content, flags = _parse_header(blob, pixels_max)
  size = header_size(blob)
  if not flags & WITH_PROFILE:
    return content, size
  (data, end), = blocks.read(blob, blob[:size], size, [PROFILE_BLOCK], content.num_slices, content.single_chunk)
  return content._replace(icc_profile=blocks.unpack_profile(data)), end


def parse_chunks(blob: bytes, content: Bitstream, head: bytes, start: int = 0, partial: bool = False) -> Bitstream:
  """Parses the blocks of z and of the slices, which begin at the offset `start` and end with `blob`; `head` is that of
  `pack_chunks`, `partial` that of `parse`. Returns `content` with the chunks."""
  chunks, checks, end = [], [], start
  try:
    for index, (data, end) in enumerate(_chunk_blocks(blob, content, head, start)):  # noqa: B007, read after the loop
      stream, chunk_checks = _split_checks(index, data, content)
      chunks.append(stream)
      checks += chunk_checks
    if len(blob) > end:
      raise BitstreamError(f"the file is damaged: it has {len(blob)} bytes, but its content ends after {end}")
  except BitstreamError:
    if not (partial and chunks):
      raise
  return content._replace(chunks=tuple(chunks), symbol_checksums=tuple(checks))


def chunk_ends(blob: bytes) -> list[int]:
  """Returns the offset in bytes at which each chunk of a complete file without tiles ends."""
  content, start = parse_head(blob, pixels_max=2**64)
  return [end for _, end in _chunk_blocks(blob, content, blob[:header_size(blob)], start)]


def check_header(blob: bytes, pixels_max: int = PIXELS_MAX) -> Bitstream:
  """Returns the content of the header of a file; HEADER_SIZE_MAX bytes of it are enough. BitstreamError unless `blob`
  begins with a valid header."""
  return _parse_header(blob, pixels_max)[0]


def _parse_header(blob: bytes, pixels_max: int) -> tuple[Bitstream, int]:
  """Returns the content of the header, without chunks, and the flags."""
  if not blob.startswith(MAGIC):
    problem = f"it begins with {bytes(blob[:4])!r}, wanted {MAGIC!r}" if blob else "it is empty"
    raise BitstreamError(f"not a .mlic file: {problem}")
  if len(blob) > len(MAGIC) and not VERSION_MIN <= blob[len(MAGIC)] <= TILED_VERSION:
    never = ", and version 1 was never released" if blob[len(MAGIC)] == 1 else ""
    raise BitstreamError(f"the file has format version {blob[len(MAGIC)]}; this program reads versions "
                         f"{VERSION_MIN} to {TILED_VERSION}{never}")
  size = HEADER_SIZE if len(blob) < HEADER_SIZE else header_size(blob)
  if len(blob) < size:
    raise BitstreamError(f"the file is truncated: it has {len(blob)} bytes, and its header alone needs {size}")
  if CHECKSUM.unpack_from(blob, size - CHECKSUM.size)[0] != zlib.crc32(blob[:size - CHECKSUM.size]) & 0xFFFF:
    raise BitstreamError("the file is damaged: the checksum of its header does not match")
  _, version, flags, fingerprint, height, width, quality, num_slices = HEADER.unpack_from(blob)
  known = [SINGLE_CHUNK, WITH_PROFILE, PORTABLE, *([SKIP, SELECTION_MAP] if version >= VERSION else []),
           *([TILED] if version == TILED_VERSION else [])]
  if flags & ~sum(known):
    *first, last = (f"{flag:#04x}" for flag in known)
    raise BitstreamError(f"the file has flags {flags:#04x}; version {version} has {', '.join(first)} and {last}")
  check_size(height, width, pixels_max)
  if not 1 <= num_slices <= SLICES_MAX:
    raise BitstreamError(f"the file has {num_slices} slices; wanted 1 to {SLICES_MAX}")
  quality = quality / QUALITY_STEPS if quality else None
  origin = _unpack_origin(blob) if flags & PORTABLE else None
  skips = _skips_rows(version, flags)
  tile_at = size - CHECKSUM.size - TILE.size * _has_tiles(version, flags)
  skipped_rows = SKIPPED.unpack_from(blob, tile_at - SKIPPED.size)[0] if skips else 0
  if skips and not 1 <= skipped_rows < SCALE_LEVELS:
    raise BitstreamError(f"the file skips {skipped_rows} CDF rows; wanted 1 to {SCALE_LEVELS - 1}")
  tile = TILE.unpack_from(blob, tile_at) if _has_tiles(version, flags) else None
  return Bitstream(fingerprint, height, width, quality, num_slices, (), bool(flags & SINGLE_CHUNK), origin=origin,
                   skipped_rows=skipped_rows, uses_map=bool(flags & SELECTION_MAP), version=min(version, VERSION),
                   tile=tile), flags


def header_size(blob: bytes) -> int:
  """Returns the header size of a file in bytes; `blob` has at least HEADER_SIZE bytes."""
  _, version, flags, *_ = HEADER.unpack_from(blob)
  return (HEADER_SIZE + ORIGIN.size * bool(flags & PORTABLE) + SKIPPED.size * _skips_rows(version, flags)
          + TILE.size * _has_tiles(version, flags))


def has_profile(blob: bytes) -> bool:
  """Whether a file with this header has a color profile; `blob` has at least HEADER_SIZE bytes."""
  return bool(HEADER.unpack_from(blob)[2] & WITH_PROFILE)


def _skips_rows(version: int, flags: int) -> bool:
  return version == SKIP_VERSION or version >= VERSION and bool(flags & SKIP)


def _has_tiles(version: int, flags: int) -> bool:
  return version == TILED_VERSION and bool(flags & TILED)


def _pack_origin(origin: Origin) -> bytes:
  numbers = min(origin.epsilon_exponent, 255), PLATFORMS.index(origin.platform), MACHINES.index(origin.machine)
  return ORIGIN.pack(*numbers, *(min(number, 255) for number in origin.jax))


def _unpack_origin(blob: bytes) -> Origin:
  """An unknown platform or machine becomes "other": decoding does not depend on it."""
  exponent, platform, machine, *jax = ORIGIN.unpack_from(blob, HEADER.size)
  name = lambda names, number: names[number] if number < len(names) else names[0]
  return Origin(exponent, name(PLATFORMS, platform), name(MACHINES, machine), tuple(jax))


def _chunk_blocks(blob: bytes, content: Bitstream, head: bytes, start: int) -> Iterator[tuple[bytes, int]]:
  indices = range(1 if content.single_chunk else content.num_slices + 1)
  return blocks.read(blob, head, start, indices, content.num_slices, content.single_chunk)


def _num_checks(index: int, content: Bitstream) -> int:
  """Returns the number of symbol checksums that follow the stream of a chunk."""
  if content.origin is None:
    return 0
  return content.num_slices if content.single_chunk else min(index, 1)


def _split_checks(index: int, data: bytes, content: Bitstream) -> tuple[bytes, list[int]]:
  """Splits the data of a chunk into its stream and its symbol checksums."""
  end = len(data) - CHECKSUM.size * _num_checks(index, content)
  if end < 0:
    raise BitstreamError(f"the file is damaged: {blocks.name(index, content.num_slices, content.single_chunk)} "
                         "is shorter than its checksums")
  return data[:end], [check for check, in CHECKSUM.iter_unpack(data[end:])]
