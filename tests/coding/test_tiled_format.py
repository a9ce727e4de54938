"""Tests of the format of tiled files: round trips, partial reads, and refusals of hostile files in one line."""
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_jax.coding import bitstream, tiled_format
from mlic_jax.coding.bitstream import Bitstream, BitstreamError, Origin
from mlic_jax.coding.tiled_format import TiledFile, pack_tile, write

HEADER = Bitstream(b"8 bytes.", 200, 300, 2.5, 2, (), tile=(128, 192))
PORTABLE = HEADER._replace(origin=Origin(13, "cpu", "x86_64", (0, 5, 3)), skipped_rows=3, icc_profile=b"a profile")


def tile_of(header, number):
  """Returns the content of a tile, different for each tile."""
  chunks = tuple(bytes([number % 256, index] * (7 + 3 * (number % 256))) for index in range(header.num_slices + 1))
  checks = tuple(number + k for k in range(header.num_slices)) if header.origin else ()
  height, width = header.tile
  return header._replace(height=height, width=width, tile=None, icc_profile=None, chunks=chunks,
                         symbol_checksums=checks)


def file_of(header):
  grid, head = tiled_format.grid_of(header), bitstream.pack_header(header)
  return write(header, [pack_tile(head, n, tile_of(header, n)) for n in range(grid.num_tiles)])


def with_header(blob, **fields):
  """Returns the file with changed header fields and matching checksums of header and index."""
  header = bitstream.check_header(blob)
  head, size = bitstream.pack_header(header._replace(**fields)), bitstream.header_size(blob)
  lengths = blob[size:size + 4 * tiled_format.grid_of(header).num_tiles]
  return head + lengths + struct.pack(">I", zlib.crc32(head + lengths)) + blob[size + len(lengths) + 4:]


@pytest.mark.parametrize("header", [HEADER, PORTABLE, HEADER._replace(height=1, width=1)])
def test_header_profile_and_tiles_come_back_in_any_order(header):
  file = TiledFile(file_of(header))
  assert file.content == header
  for number in reversed(range(file.grid.num_tiles)):
    assert file.read_tile(number) == tile_of(header, number)


def test_a_tile_is_read_without_the_others(tmp_path):
  path, blob = tmp_path / "image.mlic", file_of(PORTABLE._replace(height=128 * 50, width=192 * 50))
  path.write_bytes(blob)
  with path.open("rb") as stream:
    file = TiledFile(stream)
    file.read_tile(2499)
  assert file.bytes_read < len(blob) / 10


def test_the_format_without_tiles_does_not_know_them_and_says_where_to_look():
  with pytest.raises(BitstreamError, match="the file has tiles, wanted a file without tiles"):
    bitstream.parse(file_of(HEADER))
  with pytest.raises(BitstreamError, match="the file has no tiles"):
    TiledFile(bitstream.write(tile_of(HEADER, 0)))


def test_a_tile_in_the_place_of_another_or_of_another_file_does_not_match():
  header = HEADER._replace(height=256, width=192)
  head = bitstream.pack_header(header)
  swapped = write(header, [pack_tile(head, n, tile_of(header, n)) for n in (1, 0)])
  with pytest.raises(BitstreamError, match=r"tile 1 of 2 \(row 1, column 1\): it is damaged: the checksum of"):
    TiledFile(swapped).read_tile(0)
  other = bitstream.pack_header(header._replace(quality=1.0))
  with pytest.raises(BitstreamError, match="tile 2 of 2"):
    TiledFile(write(header, [pack_tile(other, n, tile_of(header, n)) for n in (0, 1)])).read_tile(1)


def test_a_damaged_tile_costs_no_other_and_its_slices_before_the_damage_are_read():
  blob = bytearray(file_of(PORTABLE))
  blob[-3] ^= 1                                          # in the last slice of the last tile
  file = TiledFile(bytes(blob))
  assert all(file.read_tile(n) == tile_of(PORTABLE, n) for n in range(3))
  with pytest.raises(BitstreamError, match="tile 4 of 4 .*slice 2 of 2"):
    file.read_tile(3)
  assert file.read_tile(3, partial=True).chunks == tile_of(PORTABLE, 3).chunks[:2]


def test_a_file_that_ends_early_is_refused_or_read_as_far_as_it_goes():
  blob = file_of(PORTABLE)
  with pytest.raises(BitstreamError, match=f"it has {len(blob) - 1} bytes, and tile 4 of 4 .* is incomplete"):
    TiledFile(blob[:-1])
  file = TiledFile(blob[:-200], partial=True)
  assert file.read_tile(0) == tile_of(PORTABLE, 0)
  with pytest.raises(BitstreamError, match="tile 4 of 4 .*: it is truncated: it has 0 bytes"):
    file.read_tile(3, partial=True)
  with pytest.raises(BitstreamError, match="content ends after"):
    TiledFile(blob + b"!", partial=True)


def test_a_billion_tiles_are_refused_before_anything_is_made_of_them():
  blob = with_header(file_of(HEADER), tile=(1, 1), height=20_000, width=20_000)
  with pytest.raises(BitstreamError, match="the index of its 400000000 tiles ends after 16000000"):
    TiledFile(blob)
  with pytest.raises(BitstreamError, match="tiles of 0x192 pixels; wanted at least 1x1"):
    TiledFile(with_header(file_of(HEADER), tile=(0, 192)))
  with pytest.raises(BitstreamError, match="limit is 512"):
    TiledFile(with_header(file_of(HEADER), height=10**6, width=10**6))


@pytest.mark.parametrize("lengths, message", [
    ([2**32 - 1] * 4, "tile 1 of 4 .* is incomplete"),        # offsets are sums: tiles cannot overlap
    ([0, 0, 0, 0], "content ends after")])
def test_an_index_that_does_not_fit_the_file_is_refused(lengths, message):
  blob = file_of(HEADER)
  size, packed = bitstream.header_size(blob), struct.pack(">4I", *lengths)
  head = blob[:size]
  forged = head + packed + struct.pack(">I", zlib.crc32(head + packed)) + blob[size + 20:]
  with pytest.raises(BitstreamError, match=message):
    TiledFile(forged)
  with pytest.raises(BitstreamError, match="the checksum of its index does not match"):
    TiledFile(head + packed + blob[size + 16:])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([HEADER, PORTABLE]), st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(header, data):
  blob = bytearray(file_of(header))
  for _ in range(data.draw(st.integers(1, 3))):
    place, size = data.draw(st.integers(0, len(blob))), data.draw(st.integers(1, 60))
    match data.draw(st.sampled_from(["flip", "cut", "remove", "insert"])):
      case "flip":
        blob[place:place + 1] = bytes(byte ^ data.draw(st.integers(1, 255)) for byte in blob[place:place + 1])
      case "cut":
        del blob[place:]
      case "remove":
        del blob[place:place + size]
      case "insert":
        blob[place:place] = data.draw(st.binary(min_size=1, max_size=40))
  for partial in (False, True):
    try:
      file = TiledFile(bytes(blob), partial=partial)
      assert file.content.fingerprint == header.fingerprint
    except BitstreamError as error:
      assert "\n" not in str(error) and 10 < len(str(error)) < 200
      continue
    for number in range(file.grid.num_tiles):
      try:
        content = file.read_tile(number, partial)
        assert np.all([chunk in tile_of(header, number).chunks for chunk in content.chunks])
      except BitstreamError as error:
        assert str(error).startswith(f"tile {number + 1} of {file.grid.num_tiles}") and "\n" not in str(error)
