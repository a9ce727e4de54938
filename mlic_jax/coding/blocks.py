"""The blocks of a .mlic file: length, checksum, data. docs/format.md defines every byte.

The checksum of a block covers the header and the index of the block too, so a block of another file or in another
position does not match.
"""
import struct
import zlib
from collections.abc import Iterable, Iterator

CHECKSUM = struct.Struct(">H")         # low 16 bits of the CRC-32 of the header, a block or the symbols of a slice
LONG_CHECKSUM = struct.Struct(">I")    # CRC-32 of the block in a single-chunk file
PROFILE_BLOCK = 255                    # index of the profile; chunks have the indices 0 .. slices
LENGTH_MAX = 2**32 - 1                 # bytes of a block
PROFILE_MAX = 2**20                    # bytes of a color profile, before and after compression


class BitstreamError(ValueError):
  """The file cannot be decoded; the message is one line with the found and the expected content."""


def read(blob: bytes, head: bytes, end: int, indices: Iterable[int], num_slices: int,
         single: bool) -> Iterator[tuple[bytes, int]]:
  """Yields the data of each block and the offset of its end. BitstreamError at the first incomplete block.

  Args:
    blob: the file.
    head: the header, as in `pack`.
    end: the offset of the first block.
    indices: the indices of the blocks.
    num_slices: the number of slices of the file, for messages.
    single: whether the file has a single chunk.
  """
  checksum = LONG_CHECKSUM if single else CHECKSUM
  for index in indices:
    length, start = read_length(blob, end)
    start += checksum.size
    end = start + length
    if end > len(blob):
      missing = _missing(index, num_slices, single)
      raise BitstreamError(f"the file is truncated: it has {len(blob)} bytes, and {missing} missing")
    data = bytes(blob[start:end])
    if checksum.pack(_crc(head, index, data, checksum)) != blob[start - checksum.size:start]:
      raise BitstreamError(f"the file is damaged: the checksum of {name(index, num_slices, single)} does not match")
    yield data, end


def pack(head: bytes, index: int, data: bytes, single: bool) -> bytes:
  """Returns the bytes of a block. Its checksum also covers `head`, the header of the file."""
  checksum = LONG_CHECKSUM if single else CHECKSUM
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


def read_length(blob: bytes, at: int) -> tuple[int, int]:
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


def name(index: int, num_slices: int, single: bool) -> str:
  """Returns the name of a block for messages."""
  if index == PROFILE_BLOCK:
    return "the color profile"
  return "the coded data" if single else f"slice {index} of {num_slices}" if index else "the hyperprior (z)"


def _missing(index: int, num_slices: int, single: bool) -> str:
  """Subject and verb of the sentence that this block and all later ones are missing."""
  if index == PROFILE_BLOCK:
    return "everything after the header is"
  if single:
    return "the coded data is"
  if not index:
    return "the hyperprior (z) and all slices are"
  last = f"{num_slices} of {num_slices}"
  return f"slice {last} is" if index == num_slices else f"slices {index} to {last} are"


def pack_profile(profile: bytes) -> bytes:
  """Compresses a color profile. BitstreamError above PROFILE_MAX bytes."""
  if len(profile) > PROFILE_MAX:
    raise BitstreamError(f"the color profile of the image has {len(profile)} bytes; the limit is {PROFILE_MAX}")
  return zlib.compress(profile, 9)


def unpack_profile(packed: bytes) -> bytes:
  """Decompresses a color profile. BitstreamError for other data, and above PROFILE_MAX bytes."""
  inflate = zlib.decompressobj()
  try:
    profile = inflate.decompress(packed, PROFILE_MAX + 1)  # bounds the memory, whatever the data claims
  except zlib.error as error:
    raise BitstreamError(f"the file is damaged: its color profile cannot be decompressed ({error})") from None
  if len(profile) > PROFILE_MAX or not inflate.eof or inflate.unused_data:
    raise BitstreamError(f"the file is damaged: its color profile is truncated or has more than {PROFILE_MAX} bytes")
  return profile
