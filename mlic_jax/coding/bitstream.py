"""The .mlic file: a header, a color profile if there is one, and chunks: z, then one per slice.

    header   with a checksum of its own                    docs/format.md has all of it byte by byte
    blocks   length, checksum, data: the profile (optional), z, slice 1, ..., slice S
             in a portable file, a checksum of the symbols behind the data of each slice

What arrived of a cut file can therefore be told from what is missing, block by block.
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
VERSION_MIN, VERSION = 2, 4            # of what is read, and what is written
SELECTIVE_VERSION = 3                  # version 2 with elements left out, which a flag says in version 4
HEADER = struct.Struct(">4sBB8sIIHB")  # magic, version, flags, fingerprint, height, width, quality, slices
ORIGIN = struct.Struct(">6B")          # of a portable file, next: epsilon, platform, machine, three of jax's version
SKIPPED = struct.Struct(">B")          # next, where elements are left out: of how many rows of the coding table
CHECKSUM = struct.Struct(">H")         # low 16 bits of a CRC-32: of the header, of a block, of the symbols of a slice
LONG_CHECKSUM = struct.Struct(">I")    # of a block in a single-chunk file
HEADER_SIZE = HEADER.size + CHECKSUM.size      # without ORIGIN and SKIPPED
HEADER_SIZE_MAX = HEADER_SIZE + ORIGIN.size + SKIPPED.size
SINGLE_CHUNK, WITH_PROFILE, PORTABLE, SELECTIVE, MAPPED = 0x01, 0x02, 0x04, 0x08, 0x10   # flags
PLATFORMS = ("other", "cpu", "gpu", "tpu")                # by their number in the file
MACHINES = ("other", "x86_64", "aarch64")
PROFILE_BLOCK = 255                    # its index; chunks have 0 .. slices
SLICES_MAX = 254
PADDED_SIDE = 64                       # sides are padded to multiples of this by transforms of stride 16
PADDED_SHARE, PADDED_PIXELS = 1.05, 2**20   # how much larger than the largest image a padded one may be
LENGTH_MAX = 2**32 - 1                 # of a block, in bytes
PROFILE_MAX = 2**20                    # bytes of a color profile, before compression and after
QUALITY_STEPS = 256                    # the file holds quality in 256ths, so that both sides have the same number


class BitstreamError(ValueError):
  """A file that cannot be decoded; one line that says what came and what was wanted."""


class PortabilityError(BitstreamError):
  """A portable file that decodes to other symbols than were encoded; one line that names both machines."""


class Origin(NamedTuple):
  """What a portable file says of the machine that wrote it, and of how far another may be from it."""
  epsilon_exponent: int       # e, 0 to 255: a decoder whose places are less than 2^-e off takes the same rows
  platform: str               # one of PLATFORMS
  machine: str                # one of MACHINES
  jax: tuple[int, int, int]   # its version, each number at most 255

  @property
  def epsilon(self) -> str:
    """As a user reads it."""
    return f"2^-{self.epsilon_exponent}"

  def __str__(self) -> str:
    return f"{self.platform} {self.machine}, jax {'.'.join(map(str, self.jax))}"


class Bitstream(NamedTuple):
  """What a file holds. `write` and `parse` are inverses."""
  fingerprint: bytes                # 8 bytes, of the checkpoint that wrote the chunks
  height: int                       # of the picture, before padding
  width: int
  quality: float | None             # a multiple of 1 / QUALITY_STEPS; None for a single-rate checkpoint
  num_slices: int                   # S
  chunks: tuple[bytes, ...]         # of the range coder: z, slice 1, ..., slice S; fewer when some did not arrive
  single_chunk: bool = False        # z and all slices in one
  icc_profile: bytes | None = None  # the color profile of the picture, as its file had it
  origin: Origin | None = None      # of a portable file; None for one that decodes where it was written
  symbol_checksums: tuple[int, ...] = ()  # of a portable file: `symbol_checksum` of each slice in `chunks`
  skipped: int = 0                  # elements of y in so many rows of the coding table, from the first on, are left out
  mapped: bool = False              # elements of y that the model's map leaves out are not coded, see selection.py
  version: int = VERSION            # of the format; `write` writes no other

  @property
  def num_arrived(self) -> int:
    """Slices that are here, S unless the file was cut."""
    return self.num_slices if self.single_chunk else len(self.chunks) - 1


def round_quality(quality: float) -> float:
  """The nearest quality that a file can hold."""
  return round(quality * QUALITY_STEPS) / QUALITY_STEPS


def symbol_checksum(anchors: np.ndarray, nonanchors: np.ndarray) -> int:
  """What a portable file says of the int32 symbols of a slice: 16 bits."""
  big_endian = [symbols.astype(">i4").tobytes() for symbols in (anchors, nonanchors)]
  return zlib.crc32(big_endian[1], zlib.crc32(big_endian[0])) & 0xFFFF


def check_size(height: int, width: int, pixels_max: int = PIXELS_MAX) -> None:
  """BitstreamError unless an image of this size may be coded: of at most `pixels_max` pixels, and of few more when its
  sides are padded to multiples of PADDED_SIDE. A line of 1x512,000,000 would become 33 gigapixels."""
  if height < 1 or width < 1:
    raise BitstreamError(f"the image is {height}x{width}; at least 1x1 is wanted")
  if height * width > pixels_max:
    raise BitstreamError(f"the image is {height}x{width}, {height * width / 1e6:.0f} megapixels; "
                         f"the limit is {pixels_max / 1e6:.0f}")
  padded = math.prod(-(-side // PADDED_SIDE) * PADDED_SIDE for side in (height, width))
  if padded > PADDED_SHARE * pixels_max + PADDED_PIXELS:
    raise BitstreamError(f"the image is {height}x{width} and is padded to {padded / 1e6:.0f} megapixels; "
                         f"the limit is {pixels_max / 1e6:.0f}")


def write(content: Bitstream) -> bytes:
  """The bytes of a file with all its chunks; BitstreamError when the format cannot hold it."""
  check_size(content.height, content.width, pixels_max=2**64)
  if max(content.height, content.width) >= 2**32:
    raise BitstreamError(f"the image is {content.height}x{content.width}; a file holds sides below 2^32")
  if not 1 <= content.num_slices <= SLICES_MAX:
    raise BitstreamError(f"the model has {content.num_slices} slices; a file holds 1 to {SLICES_MAX}")
  flags = (SINGLE_CHUNK * content.single_chunk | WITH_PROFILE * (content.icc_profile is not None)
           | PORTABLE * (content.origin is not None) | SELECTIVE * bool(content.skipped)
           | MAPPED * content.mapped)
  quality = 0 if content.quality is None else round(content.quality * QUALITY_STEPS)
  head = HEADER.pack(MAGIC, VERSION, flags, content.fingerprint, content.height, content.width, quality,
                     content.num_slices)
  if content.origin is not None:
    head += _pack_origin(content.origin)
  if content.skipped:
    head += SKIPPED.pack(content.skipped)
  head += CHECKSUM.pack(zlib.crc32(head) & 0xFFFF)
  checksum = LONG_CHECKSUM if content.single_chunk else CHECKSUM
  checks, blocks = iter(content.symbol_checksums), []
  for index, stream in enumerate(content.chunks):
    of_chunk = [CHECKSUM.pack(next(checks)) for _ in range(_num_checks(index, content.num_slices, flags))]
    blocks.append((index, stream + b"".join(of_chunk)))
  if content.icc_profile is not None:
    blocks.insert(0, (PROFILE_BLOCK, _pack_profile(content.icc_profile)))
  return head + b"".join(_block(head, index, data, checksum) for index, data in blocks)


def parse(blob: bytes, pixels_max: int = PIXELS_MAX, partial: bool = False) -> Bitstream:
  """The content of a file, every field checked before anything is decoded. BitstreamError for what is none.

  With `partial` a file may end early or be damaged in a slice: the chunks before that place are returned, if z is
  among them.
  """
  content, flags = _parse_header(blob, pixels_max)
  blocks, chunks, checks = _blocks(blob, content.num_slices, flags), [], []
  profile = _unpack_profile(next(blocks)[0]) if flags & WITH_PROFILE else None
  try:
    for index, (data, _) in enumerate(blocks):
      stream, of_chunk = _split_checks(index, data, content.num_slices, flags)
      chunks.append(stream)
      checks += of_chunk
  except BitstreamError:
    if not (partial and chunks):
      raise
  return content._replace(chunks=tuple(chunks), icc_profile=profile, symbol_checksums=tuple(checks))


def chunk_ends(blob: bytes) -> list[int]:
  """Where the chunks of a whole file end: once so many bytes have arrived, that chunk has."""
  content, flags = _parse_header(blob, pixels_max=2**64)
  ends = [end for _, end in _blocks(blob, content.num_slices, flags)]
  return ends[1:] if flags & WITH_PROFILE else ends


def check_header(blob: bytes, pixels_max: int = PIXELS_MAX) -> None:
  """BitstreamError unless a file may begin with these bytes, HEADER_SIZE_MAX or all that it has."""
  _parse_header(blob, pixels_max)


def _parse_header(blob: bytes, pixels_max: int) -> tuple[Bitstream, int]:
  """What the header says, without chunks, and the flags."""
  if not blob.startswith(MAGIC):
    came = f"it begins with {bytes(blob[:4])!r}, wanted {MAGIC!r}" if blob else "it is empty"
    raise BitstreamError(f"not a .mlic file: {came}")
  if len(blob) > len(MAGIC) and not VERSION_MIN <= blob[len(MAGIC)] <= VERSION:
    never = ", and version 1 was never released" if blob[len(MAGIC)] == 1 else ""
    raise BitstreamError(f"the file has format version {blob[len(MAGIC)]}; this program reads versions "
                         f"{VERSION_MIN} to {VERSION}{never}")
  size = HEADER_SIZE if len(blob) < HEADER_SIZE else _header_size(blob)
  if len(blob) < size:
    raise BitstreamError(f"the file is cut short: {len(blob)} bytes, its header alone has {size}")
  if CHECKSUM.unpack_from(blob, size - CHECKSUM.size)[0] != zlib.crc32(blob[:size - CHECKSUM.size]) & 0xFFFF:
    raise BitstreamError("the file is damaged: the checksum of its header does not fit")
  _, version, flags, fingerprint, height, width, quality, num_slices = HEADER.unpack_from(blob)
  known = [SINGLE_CHUNK, WITH_PROFILE, PORTABLE, *([SELECTIVE, MAPPED] if version == VERSION else [])]
  if flags & ~sum(known):
    *first, last = (f"{flag:#04x}" for flag in known)
    raise BitstreamError(f"the file has flags {flags:#04x}; version {version} has {', '.join(first)} and {last}")
  check_size(height, width, pixels_max)
  if not 1 <= num_slices <= SLICES_MAX:
    raise BitstreamError(f"the file has {num_slices} slices; 1 to {SLICES_MAX} are wanted")
  quality = quality / QUALITY_STEPS if quality else None
  origin = _unpack_origin(blob) if flags & PORTABLE else None
  selective = _is_selective(version, flags)
  skipped = SKIPPED.unpack_from(blob, size - CHECKSUM.size - SKIPPED.size)[0] if selective else 0
  if selective and not 1 <= skipped < SCALE_LEVELS:
    raise BitstreamError(f"the file leaves {skipped} rows out; 1 to {SCALE_LEVELS - 1} are wanted")
  return Bitstream(fingerprint, height, width, quality, num_slices, (), bool(flags & SINGLE_CHUNK),
                   origin=origin, skipped=skipped, mapped=bool(flags & MAPPED), version=version), flags


def _header_size(blob: bytes) -> int:
  """Of a file of which HEADER_SIZE bytes are here at least."""
  _, version, flags, *_ = HEADER.unpack_from(blob)
  return HEADER_SIZE + ORIGIN.size * bool(flags & PORTABLE) + SKIPPED.size * _is_selective(version, flags)


def _is_selective(version: int, flags: int) -> bool:
  return version == SELECTIVE_VERSION or version == VERSION and bool(flags & SELECTIVE)


def _pack_origin(origin: Origin) -> bytes:
  numbers = min(origin.epsilon_exponent, 255), PLATFORMS.index(origin.platform), MACHINES.index(origin.machine)
  return ORIGIN.pack(*numbers, *(min(number, 255) for number in origin.jax))


def _unpack_origin(blob: bytes) -> Origin:
  """A platform or machine that has no number yet is "other": nothing is decoded by it."""
  exponent, platform, machine, *jax = ORIGIN.unpack_from(blob, HEADER.size)
  name = lambda names, number: names[number] if number < len(names) else names[0]
  return Origin(exponent, name(PLATFORMS, platform), name(MACHINES, machine), tuple(jax))


def _num_checks(index: int, num_slices: int, flags: int) -> int:
  """How many checksums of symbols lie behind the stream of a chunk."""
  if not flags & PORTABLE:
    return 0
  return num_slices if flags & SINGLE_CHUNK else min(index, 1)


def _split_checks(index: int, data: bytes, num_slices: int, flags: int) -> tuple[bytes, list[int]]:
  """The stream of a chunk, and the checksums of symbols behind it."""
  end = len(data) - CHECKSUM.size * _num_checks(index, num_slices, flags)
  if end < 0:
    raise BitstreamError(f"the file is damaged: {_name(index, num_slices, flags & SINGLE_CHUNK)} "
                         "is shorter than its checksums")
  return data[:end], [check for check, in CHECKSUM.iter_unpack(data[end:])]


def _blocks(blob: bytes, num_slices: int, flags: int) -> Iterator[tuple[bytes, int]]:
  """The blocks behind the header, each with the place where it ends. BitstreamError at the first that is not whole."""
  single, end = flags & SINGLE_CHUNK, _header_size(blob)
  head = blob[:end]
  checksum = LONG_CHECKSUM if single else CHECKSUM
  chunks = range(1 if single else num_slices + 1)
  for index in [*([PROFILE_BLOCK] if flags & WITH_PROFILE else []), *chunks]:
    length, start = _read_length(blob, end)
    start += checksum.size
    end = start + length
    if end > len(blob):
      raise BitstreamError(f"the file is cut short: {len(blob)} bytes, {_missing(index, num_slices, single)} missing")
    data = bytes(blob[start:end])
    if checksum.pack(_crc(head, index, data, checksum)) != blob[start - checksum.size:start]:
      raise BitstreamError(f"the file is damaged: the checksum of {_name(index, num_slices, single)} does not fit")
    yield data, end
  if len(blob) > end:
    raise BitstreamError(f"the file is damaged: {len(blob)} bytes, its content ends after {end}")


def _block(head: bytes, index: int, data: bytes, checksum: struct.Struct) -> bytes:
  if len(data) > LENGTH_MAX:
    raise BitstreamError(f"{len(data)} bytes of coded data; a chunk holds {LENGTH_MAX}, in smaller pictures")
  return _write_length(len(data)) + checksum.pack(_crc(head, index, data, checksum)) + data


def _crc(head: bytes, index: int, data: bytes, checksum: struct.Struct) -> int:
  """Over the header and the index too, so that a block of another file or in another place is noticed."""
  return zlib.crc32(data, zlib.crc32(head + bytes([index]))) & (1 << 8 * checksum.size) - 1


def _write_length(length: int) -> bytes:
  """LEB128: seven bits a byte, lowest first, the top bit set in all but the last."""
  out = bytearray()
  while length > 127:
    out.append(length & 127 | 128)
    length >>= 7
  return bytes([*out, length])


def _read_length(blob: bytes, at: int) -> tuple[int, int]:
  """The length that begins at `at`, and where it ends; more than any file has when the file ends in it."""
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
  """What a file that ends in this block lacks, with its verb."""
  if index == PROFILE_BLOCK:
    return "everything behind the header is"
  if single:
    return "the coded data is"
  if not index:
    return "the hyperprior (z) and all slices are"
  of_them = f"of {num_slices}"
  return f"slice {index} {of_them} is" if index == num_slices else f"slices {index} to {num_slices} {of_them} are"


def _pack_profile(profile: bytes) -> bytes:
  if len(profile) > PROFILE_MAX:
    raise BitstreamError(f"the color profile of the picture has {len(profile)} bytes; a file holds {PROFILE_MAX}")
  return zlib.compress(profile, 9)


def _unpack_profile(packed: bytes) -> bytes:
  inflate = zlib.decompressobj()
  try:
    profile = inflate.decompress(packed, PROFILE_MAX + 1)  # no more memory than that, whatever the data says
  except zlib.error as error:
    raise BitstreamError(f"the file is damaged: its color profile cannot be unpacked ({error})") from None
  if len(profile) > PROFILE_MAX or not inflate.eof or inflate.unused_data:
    raise BitstreamError(f"the file is damaged: its color profile is cut, or has more than {PROFILE_MAX} bytes")
  return profile
