"""The .mlic format of tiled images: the header with the size of the tiles, an index, and the chunks of each tile.

    header    version 5, with height and width of a tile        docs/format.md defines every byte
    profile   the block of the color profile (optional)
    index     the length of each tile in bytes, and a checksum
    tiles     each has the blocks of a file without tiles: z, slice 1, ..., slice S

The checksums of a tile's blocks cover its number, so a tile at the position of another one does not match. To decode a
region, only the header, the index and the needed tiles are read.
"""
import io
import itertools
import os
import struct
import zlib
from collections.abc import Sequence
from typing import IO

import numpy as np

from mlic_jax.coding import bitstream, blocks
from mlic_jax.coding.bitstream import PIXELS_MAX, PROFILE_MAX, Bitstream, BitstreamError
from mlic_jax.coding.tile_grid import TileGrid

NUMBER = struct.Struct(">I")           # number of a tile, row by row from 0; its checksums cover header and number
LENGTH = np.dtype(">u4")               # bytes of a tile
INDEX_CHECKSUM = struct.Struct(">I")   # CRC-32 of the header and the lengths
PREFIX = bitstream.HEADER_SIZE_MAX + 16   # bytes that hold the header and the length of the profile
PROFILE_BLOCK_MAX = PROFILE_MAX + 2**16   # bytes of a compressed profile, with length and checksum


def grid_of(content: Bitstream) -> TileGrid:
  """Returns the tiles of a file, in pixels."""
  assert content.tile is not None  # the file is tiled
  return TileGrid(content.height, content.width, *content.tile)


def is_tiled(blob: bytes, pixels_max: int = PIXELS_MAX) -> bool:
  """Whether a file is tiled; HEADER_SIZE_MAX bytes of it are enough. BitstreamError for an invalid header."""
  return bitstream.check_header(blob, pixels_max).tile is not None


def pack_tile(head: bytes, number: int, content: Bitstream) -> bytes:
  """Returns the bytes of a tile with the chunks of `content`, in a file with the header `head`."""
  return bitstream.pack_chunks(head + NUMBER.pack(number), content)


def write(content: Bitstream, tiles: Sequence[bytes]) -> bytes:
  """Returns the bytes of a tiled file with the header of `content` and the results of `pack_tile`, in order.

  BitstreamError if the format cannot hold them."""
  head, lengths = bitstream.pack_header(content), [len(tile) for tile in tiles]
  if max(lengths) > bitstream.LENGTH_MAX:
    raise BitstreamError(f"a tile has {max(lengths)} bytes; the format allows {bitstream.LENGTH_MAX}, enough for "
                         "smaller tiles")
  index = np.array(lengths, LENGTH).tobytes()
  checksum = INDEX_CHECKSUM.pack(zlib.crc32(head + index))
  return b"".join([head, bitstream.pack_profile(head, content), index, checksum, *tiles])

PARTIAL_HINT = "; --partial (in Python partial=True) decodes the other tiles"


class TiledFile:
  """A tiled file that is read tile by tile.

  Attributes:
    content: the content of the header, and the color profile.
    grid: the tiles, in pixels.
    num_bytes: the size of the file.
    bytes_read: the number of bytes read so far.

  Args:
    source: the file, as bytes or as a seekable binary file.
    pixels_max: refuse larger images.
    partial: accept a truncated file; reading a missing tile raises an error.

  BitstreamError unless header, profile and index are complete and, without `partial`, the file has the length of the
  index.
  """

  def __init__(self, source: bytes | IO[bytes], pixels_max: int = PIXELS_MAX, partial: bool = False):
    self._file: IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else source
    self.num_bytes, self.bytes_read = self._file.seek(0, os.SEEK_END), 0
    blob = self._read(0, PREFIX)
    header = bitstream.check_header(blob, pixels_max)
    if header.tile is None:
      raise BitstreamError("the file has no tiles; wanted a file that was encoded in tiles")
    if min(header.tile) < 1:
      raise BitstreamError(f"the file has tiles of {header.tile[0]}x{header.tile[1]} pixels; wanted at least 1x1")
    self._head = blob[:bitstream.header_size(blob)]
    self.grid = grid_of(header)
    if bitstream.has_profile(blob):
      length, start = blocks.read_length(blob, len(self._head))
      blob += self._read(len(blob), min(start + length, PROFILE_BLOCK_MAX))
    self.content, start = bitstream.parse_head(blob, pixels_max)
    size = LENGTH.itemsize * self.grid.num_tiles + INDEX_CHECKSUM.size
    if start + size > self.num_bytes:
      raise BitstreamError(f"the file is truncated: it has {self.num_bytes} bytes, and the index of its "
                           f"{self.grid.num_tiles} tiles ends after {start + size}")
    index = self._read(start, size)
    lengths, checksum = index[:-INDEX_CHECKSUM.size], index[-INDEX_CHECKSUM.size:]
    if checksum != INDEX_CHECKSUM.pack(zlib.crc32(self._head + lengths)):
      raise BitstreamError("the file is damaged: the checksum of its index does not match")
    self._offsets = list(itertools.accumulate(np.frombuffer(lengths, LENGTH).tolist(), initial=start + size))
    if self._offsets[-1] < self.num_bytes:
      raise BitstreamError(f"the file is damaged: it has {self.num_bytes} bytes, but its content ends after "
                           f"{self._offsets[-1]}")
    if self._offsets[-1] > self.num_bytes and not partial:
      number = next(n for n, end in enumerate(self._offsets[1:]) if end > self.num_bytes)
      raise BitstreamError(f"the file is truncated: it has {self.num_bytes} bytes, and {self.name(number)} is "
                           f"incomplete{PARTIAL_HINT}")

  def read_tile(self, number: int, partial: bool = False) -> Bitstream:
    """Reads the content of a tile, like a file of its size.

    BitstreamError names a tile that is damaged or missing; with `partial`, only if its z is."""
    start, end = self._offsets[number:number + 2]
    height, width = self.grid.tile_height, self.grid.tile_width
    content = self.content._replace(height=height, width=width, tile=None, icc_profile=None)
    try:
      return bitstream.parse_chunks(self._read(start, end - start), content, self._head + NUMBER.pack(number),
                                    partial=partial)
    except BitstreamError as error:
      raise BitstreamError(f"{self.name(number)}: {str(error).replace('the file', 'it')}") from None

  def name(self, number: int) -> str:
    """Returns the name of a tile for messages."""
    row, column = divmod(number, self.grid.columns)
    return f"tile {number + 1} of {self.grid.num_tiles} (row {row + 1}, column {column + 1})"

  def _read(self, start: int, size: int) -> bytes:
    """Reads `size` bytes, or as many as there are."""
    self._file.seek(min(start, self.num_bytes))
    data = self._file.read(size)
    self.bytes_read += len(data)
    return data
