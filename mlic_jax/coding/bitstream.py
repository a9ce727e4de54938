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

from mlic_jax.data.image_io import PIXELS_MAX
from mlic_jax.model.scale_table import SCALE_LEVELS

MAGIC = b"MLIC"
VERSION_MIN, VERSION = 2, 4            # versions VERSION_MIN to VERSION are read, VERSION is written
SKIP_VERSION = 3                       # version 2 with skipped elements; version 4 has a flag for them
HEADER = struct.Struct(">4sBB8sIIHB")  # magic, version, flags, fingerprint, height, width, quality, slices
ORIGIN = struct.Struct(">6B")          # portable files only: epsilon, platform, machine, jax major, minor, patch
SKIPPED = struct.Struct(">B")          # skip coding only: the number of CDF rows whose elements are skipped
CHECKSUM = struct.Struct(">H")         # low 16 bits of the CRC-32 of the header, a block or the symbols of a slice
LONG_CHECKSUM = struct.Struct(">I")    # CRC-32 of the block in a single-chunk file
HEADER_SIZE = HEADER.size + CHECKSUM.size      # without ORIGIN and SKIPPED
HEADER_SIZE_MAX = HEADER_SIZE + ORIGIN.size + SKIPPED.size
SINGLE_CHUNK, WITH_PROFILE, PORTABLE, SKIP, SELECTION_MAP = 0x01, 0x02, 0x04, 0x08, 0x10   # flags
PLATFORMS = ("other", "cpu", "gpu", "tpu")                # a file stores the index
MACHINES = ("other", "x86_64", "aarch64")
PROFILE_BLOCK = 255                    # index of the profile; chunks have the indices 0 .. slices
SLICES_MAX = 254
PADDED_SIDE = 64                       # transforms of stride 16 pad each side to a multiple of 64
PADDED_SHARE, PADDED_PIXELS = 1.05, 2**20   # a padded image has at most PADDED_SHARE * pixels_max + PADDED_PIXELS
LENGTH_MAX = 2**32 - 1                 # bytes of a block
PROFILE_MAX = 2**20                    # bytes of a color profile, before and after compression
QUALITY_STEPS = 256                    # quality is stored in 1/256, so encoder and decoder use the same number


class BitstreamError(ValueError):
  """The file cannot be decoded; the message is one line with the found and the expected content."""


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
  version: int = VERSION            # of the format; `write` supports VERSION only

  @property
  def num_received(self) -> int:
    """The number of complete slices, S unless the file is truncated."""
    return self.num_slices if self.single_chunk else len(self.chunks) - 1


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
  check_size(content.height, content.width, pixels_max=2**64)
  if max(content.height, content.width) >= 2**32:
    raise BitstreamError(f"the image is {content.height}x{content.width}; a file holds sides below 2^32")
  if not 1 <= content.num_slices <= SLICES_MAX:
    raise BitstreamError(f"the model has {content.num_slices} slices; a file holds 1 to {SLICES_MAX}")
  flags = (SINGLE_CHUNK * content.single_chunk | WITH_PROFILE * (content.icc_profile is not None)
           | PORTABLE * (content.origin is not None) | SKIP * bool(content.skipped_rows)
           | SELECTION_MAP * content.uses_map)
  quality = 0 if content.quality is None else round(content.quality * QUALITY_STEPS)
  head = HEADER.pack(MAGIC, VERSION, flags, content.fingerprint, content.height, content.width, quality,
                     content.num_slices)
  if content.origin is not None:
    head += _pack_origin(content.origin)
  if content.skipped_rows:
    head += SKIPPED.pack(content.skipped_rows)
  head += CHECKSUM.pack(zlib.crc32(head) & 0xFFFF)
  checksum = LONG_CHECKSUM if content.single_chunk else CHECKSUM
  checks, blocks = iter(content.symbol_checksums), []
  for index, stream in enumerate(content.chunks):
    chunk_checks = [CHECKSUM.pack(next(checks)) for _ in range(_num_checks(index, content.num_slices, flags))]
    blocks.append((index, stream + b"".join(chunk_checks)))
  if content.icc_profile is not None:
    blocks.insert(0, (PROFILE_BLOCK, _pack_profile(content.icc_profile)))
  return head + b"".join(_block(head, index, data, checksum) for index, data in blocks)


def parse(blob: bytes, pixels_max: int = PIXELS_MAX, partial: bool = False) -> Bitstream:
  """Parses a file and checks all its fields. BitstreamError if the bytes are no valid file.

  With `partial`, a file may end early or be damaged in a slice. `parse` then returns the chunks before that slice; z
  has to be complete.
  """
  content, flags = _parse_header(blob, pixels_max)
  blocks, chunks, checks = _blocks(blob, content.num_slices, flags), [], []
  profile = _unpack_profile(next(blocks)[0]) if flags & WITH_PROFILE else None
  try:
    for index, (data, _) in enumerate(blocks):
      stream, chunk_checks = _split_checks(index, data, content.num_slices, flags)
      chunks.append(stream)
      checks += chunk_checks
  except BitstreamError:
    if not (partial and chunks):
      raise
  return content._replace(chunks=tuple(chunks), icc_profile=profile, symbol_checksums=tuple(checks))


def chunk_ends(blob: bytes) -> list[int]:
  """Returns the offset in bytes at which each chunk of a complete file ends."""
  content, flags = _parse_header(blob, pixels_max=2**64)
  ends = [end for _, end in _blocks(blob, content.num_slices, flags)]
  return ends[1:] if flags & WITH_PROFILE else ends


def check_header(blob: bytes, pixels_max: int = PIXELS_MAX) -> None:
  """Raises BitstreamError unless `blob` begins with a valid header; HEADER_SIZE_MAX bytes of a file are enough."""
  _parse_header(blob, pixels_max)


def _parse_header(blob: bytes, pixels_max: int) -> tuple[Bitstream, int]:
  """Returns the content of the header, without chunks, and the flags."""
  if not blob.startswith(MAGIC):
    problem = f"it begins with {bytes(blob[:4])!r}, wanted {MAGIC!r}" if blob else "it is empty"
    raise BitstreamError(f"not a .mlic file: {problem}")
  if len(blob) > len(MAGIC) and not VERSION_MIN <= blob[len(MAGIC)] <= VERSION:
    never = ", and version 1 was never released" if blob[len(MAGIC)] == 1 else ""
    raise BitstreamError(f"the file has format version {blob[len(MAGIC)]}; this program reads versions "
                         f"{VERSION_MIN} to {VERSION}{never}")
  size = HEADER_SIZE if len(blob) < HEADER_SIZE else _header_size(blob)
  if len(blob) < size:
    raise BitstreamError(f"the file is truncated: it has {len(blob)} bytes, and its header alone needs {size}")
  if CHECKSUM.unpack_from(blob, size - CHECKSUM.size)[0] != zlib.crc32(blob[:size - CHECKSUM.size]) & 0xFFFF:
    raise BitstreamError("the file is damaged: the checksum of its header does not match")
  _, version, flags, fingerprint, height, width, quality, num_slices = HEADER.unpack_from(blob)
  known = [SINGLE_CHUNK, WITH_PROFILE, PORTABLE, *([SKIP, SELECTION_MAP] if version == VERSION else [])]
  if flags & ~sum(known):
    *first, last = (f"{flag:#04x}" for flag in known)
    raise BitstreamError(f"the file has flags {flags:#04x}; version {version} has {', '.join(first)} and {last}")
  check_size(height, width, pixels_max)
  if not 1 <= num_slices <= SLICES_MAX:
    raise BitstreamError(f"the file has {num_slices} slices; wanted 1 to {SLICES_MAX}")
  quality = quality / QUALITY_STEPS if quality else None
  origin = _unpack_origin(blob) if flags & PORTABLE else None
  skips = _skips_rows(version, flags)
  skipped_rows = SKIPPED.unpack_from(blob, size - CHECKSUM.size - SKIPPED.size)[0] if skips else 0
  if skips and not 1 <= skipped_rows < SCALE_LEVELS:
    raise BitstreamError(f"the file skips {skipped_rows} CDF rows; wanted 1 to {SCALE_LEVELS - 1}")
  return Bitstream(fingerprint, height, width, quality, num_slices, (), bool(flags & SINGLE_CHUNK), origin=origin,
                   skipped_rows=skipped_rows, uses_map=bool(flags & SELECTION_MAP), version=version), flags


def _header_size(blob: bytes) -> int:
  """Returns the header size of a file in bytes; `blob` has at least HEADER_SIZE bytes."""
  _, version, flags, *_ = HEADER.unpack_from(blob)
  return HEADER_SIZE + ORIGIN.size * bool(flags & PORTABLE) + SKIPPED.size * _skips_rows(version, flags)


def _skips_rows(version: int, flags: int) -> bool:
  return version == SKIP_VERSION or version == VERSION and bool(flags & SKIP)


def _pack_origin(origin: Origin) -> bytes:
  numbers = min(origin.epsilon_exponent, 255), PLATFORMS.index(origin.platform), MACHINES.index(origin.machine)
  return ORIGIN.pack(*numbers, *(min(number, 255) for number in origin.jax))


def _unpack_origin(blob: bytes) -> Origin:
  """An unknown platform or machine becomes "other": decoding does not depend on it."""
  exponent, platform, machine, *jax = ORIGIN.unpack_from(blob, HEADER.size)
  name = lambda names, number: names[number] if number < len(names) else names[0]
  return Origin(exponent, name(PLATFORMS, platform), name(MACHINES, machine), tuple(jax))


def _num_checks(index: int, num_slices: int, flags: int) -> int:
  """Returns the number of symbol checksums that follow the stream of a chunk."""
  if not flags & PORTABLE:
    return 0
  return num_slices if flags & SINGLE_CHUNK else min(index, 1)


def _split_checks(index: int, data: bytes, num_slices: int, flags: int) -> tuple[bytes, list[int]]:
  """Splits the data of a chunk into its stream and its symbol checksums."""
  end = len(data) - CHECKSUM.size * _num_checks(index, num_slices, flags)
  if end < 0:
    raise BitstreamError(f"the file is damaged: {_name(index, num_slices, flags & SINGLE_CHUNK)} "
                         "is shorter than its checksums")
  return data[:end], [check for check, in CHECKSUM.iter_unpack(data[end:])]


def _blocks(blob: bytes, num_slices: int, flags: int) -> Iterator[tuple[bytes, int]]:
  """Yields each block after the header with the offset of its end. BitstreamError at the first incomplete block."""
  single, end = flags & SINGLE_CHUNK, _header_size(blob)
  head = blob[:end]
  checksum = LONG_CHECKSUM if single else CHECKSUM
  chunks = range(1 if single else num_slices + 1)
  for index in [*([PROFILE_BLOCK] if flags & WITH_PROFILE else []), *chunks]:
    length, start = _read_length(blob, end)
    start += checksum.size
    end = start + length
    if end > len(blob):
      missing = _missing(index, num_slices, single)
      raise BitstreamError(f"the file is truncated: it has {len(blob)} bytes, and {missing} missing")
    data = bytes(blob[start:end])
    if checksum.pack(_crc(head, index, data, checksum)) != blob[start - checksum.size:start]:
      raise BitstreamError(f"the file is damaged: the checksum of {_name(index, num_slices, single)} does not match")
    yield data, end
  if len(blob) > end:
    raise BitstreamError(f"the file is damaged: it has {len(blob)} bytes, but its content ends after {end}")


def _block(head: bytes, index: int, data: bytes, checksum: struct.Struct) -> bytes:
  if len(data) > LENGTH_MAX:
    raise BitstreamError(f"a chunk has {len(data)} bytes; the format allows {LENGTH_MAX}, enough for smaller images")
  return _write_length(len(data)) + checksum.pack(_crc(head, index, data, checksum)) + data


def _crc(head: bytes, index: int, data: bytes, checksum: struct.Struct) -> int:
  """The checksum covers header and index too, so a block of another file or at another position does not match."""
  return zlib.crc32(data, zlib.crc32(head + bytes([index]))) & (1 << 8 * checksum.size) - 1


def _write_length(length: int) -> bytes:
  """Encodes a length as LEB128: seven bits a byte, lowest first, the top bit set in all bytes but the last."""
  out = bytearray()
  while length > 127:
    out.append(length & 127 | 128)
    length >>= 7
  return bytes([*out, length])


def _read_length(blob: bytes, at: int) -> tuple[int, int]:
  """Returns the length stored at offset `at` and the offset of its end; LENGTH_MAX if the file ends within it."""
  length = 0
  for i, byte in enumerate(blob[at:at + 5]):
    length |= (byte & 127) << 7 * i
    if byte < 128:
      if length > LENGTH_MAX or i and not byte:
        raise BitstreamError(f"the file is damaged: a length of {length} in {i + 1} bytes")
      return length, at + i + 1
  if at + 5 <= len(blob):
    raise BitstreamError("the file is damaged: a length of more than 5 bytes")
  return LENGTH_MAX, len(blob)


def _name(index: int, num_slices: int, single: int) -> str:
  if index == PROFILE_BLOCK:
    return "the color profile"
  return "the coded data" if single else f"slice {index} of {num_slices}" if index else "the hyperprior (z)"


def _missing(index: int, num_slices: int, single: int) -> str:
  """Subject and verb of the sentence that this block and all later ones are missing."""
  if index == PROFILE_BLOCK:
    return "everything after the header is"
  if single:
    return "the coded data is"
  if not index:
    return "the hyperprior (z) and all slices are"
  last = f"{num_slices} of {num_slices}"
  return f"slice {last} is" if index == num_slices else f"slices {index} to {last} are"


def _pack_profile(profile: bytes) -> bytes:
  if len(profile) > PROFILE_MAX:
    raise BitstreamError(f"the color profile of the image has {len(profile)} bytes; the limit is {PROFILE_MAX}")
  return zlib.compress(profile, 9)


def _unpack_profile(packed: bytes) -> bytes:
  inflate = zlib.decompressobj()
  try:
    profile = inflate.decompress(packed, PROFILE_MAX + 1)  # bounds the memory, whatever the data claims
  except zlib.error as error:
    raise BitstreamError(f"the file is damaged: its color profile cannot be decompressed ({error})") from None
  if len(profile) > PROFILE_MAX or not inflate.eof or inflate.unused_data:
    raise BitstreamError(f"the file is damaged: its color profile is truncated or has more than {PROFILE_MAX} bytes")
  return profile
