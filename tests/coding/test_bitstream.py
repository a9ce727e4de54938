"""Tests of the file format: round trips, truncated files, and refusals of other files in one line."""
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_jax.coding import bitstream, blocks
from mlic_jax.coding.bitstream import HEADER, HEADER_SIZE, Bitstream, BitstreamError, Origin, parse, write

CHUNKS = (b"hyperprior", b"slice one", b"", b"a longer slice " * 20)
CONTENT = Bitstream(b"8 bytes.", height=100, width=80, quality=2.5, num_slices=3, chunks=CHUNKS)
SINGLE = CONTENT._replace(chunks=(b"".join(CHUNKS),), single_chunk=True)
ORIGIN = Origin(12, "gpu", "aarch64", (0, 5, 3))
PORTABLE = CONTENT._replace(origin=ORIGIN, symbol_checksums=(0, 0xFFFF, 0x1234))
PORTABLE_SINGLE = SINGLE._replace(origin=ORIGIN, symbol_checksums=(0, 0xFFFF, 0x1234))
PROFILE = b"a color profile " * 100


def with_header(blob, **fields):
  """Replaces values in the header of a file, with its checksum; the checksums of the chunks do not match.

  With the flag of portable files it gets the six bytes of such a header; the file itself has to be none.
  """
  names = ("magic", "version", "flags", "fingerprint", "height", "width", "quality", "slices")
  values = dict(zip(names, HEADER.unpack_from(blob))) | fields
  head = HEADER.pack(*values.values()) + bytes(6 * bool(values["flags"] & bitstream.PORTABLE))
  return head + bitstream.CHECKSUM.pack(zlib.crc32(head) & 0xFFFF) + blob[HEADER_SIZE:]


@pytest.mark.parametrize("content", [
    CONTENT, SINGLE, CONTENT._replace(quality=None), CONTENT._replace(icc_profile=PROFILE),
    CONTENT._replace(icc_profile=b""), PORTABLE, PORTABLE_SINGLE, PORTABLE._replace(icc_profile=PROFILE),
    PORTABLE._replace(origin=Origin(255, "other", "other", (255, 0, 255))), CONTENT._replace(skipped_rows=1),
    SINGLE._replace(skipped_rows=63), PORTABLE._replace(skipped_rows=7, icc_profile=PROFILE),
    CONTENT._replace(uses_map=True),
    PORTABLE._replace(skipped_rows=7, uses_map=True),
    SINGLE._replace(icc_profile=PROFILE), CONTENT._replace(num_slices=1, chunks=(b"", b"\0" * 70_000)),
    CONTENT._replace(num_slices=254, chunks=(b"x",) * 255), CONTENT._replace(height=1, width=8_000_000)])
def test_parse_is_the_inverse_of_write(content):
  assert parse(write(content)) == content
  assert parse(write(content)).num_received == content.num_slices


def test_a_file_costs_27_bytes_and_3_or_4_for_each_chunk():
  """A length of up to 127 takes one byte, up to 16383 two."""
  assert len(write(CONTENT)) == sum(map(len, CHUNKS)) + 27 + 3 * 3 + 4
  assert len(write(SINGLE)) == sum(map(len, CHUNKS)) + 27 + 6


@pytest.mark.parametrize("content", [PORTABLE, PORTABLE_SINGLE])
def test_being_portable_costs_6_bytes_and_2_for_each_slice(content):
  plain = content._replace(origin=None, symbol_checksums=())
  assert len(write(content)) == len(write(plain)) + 6 + 2 * 3


def test_what_wrote_a_portable_file_is_in_bytes_25_to_30_and_symbols_are_summed_behind_the_data():
  blob = write(PORTABLE)
  assert blob[5] == 4 and blob[25:31] == bytes([12, 2, 2, 0, 5, 3])
  assert blob.endswith(CHUNKS[-1] + b"\x12\x34")
  assert write(PORTABLE_SINGLE).endswith(CHUNKS[-1] + b"\0\0\xff\xff\x12\x34")
  assert str(parse(blob).origin) == "gpu aarch64, jax 0.5.3" and parse(blob).origin.epsilon == "2^-12"


def test_a_version_of_jax_beyond_a_byte_is_clipped_and_an_unknown_machine_is_another():
  blob = write(PORTABLE._replace(origin=ORIGIN._replace(jax=(0, 6, 999))))
  assert parse(blob).origin.jax == (0, 6, 255)
  head = blob[:25] + bytes([12, 77, 3, 0, 6, 1])
  head += bitstream.CHECKSUM.pack(zlib.crc32(head) & 0xFFFF)
  content, _ = bitstream._parse_header(head, 10**6)
  assert content.origin == Origin(12, "other", "other", (0, 6, 1))


def test_symbols_are_summed_as_big_endian_integers_anchors_first():
  anchors, others = np.int32([[1, -2]]), np.int32([[3], [70_000]])
  wanted = zlib.crc32(struct.pack(">4i", 1, -2, 3, 70_000)) & 0xFFFF
  assert bitstream.symbol_checksum(anchors, others) == wanted != bitstream.symbol_checksum(others, anchors)


@pytest.mark.parametrize("content", [PORTABLE, PORTABLE_SINGLE])
def test_a_chunk_that_is_shorter_than_its_checksums_is_damaged(content):
  head = write(content)[:25 + 6 + 2]
  chunks = (b"z", b"1", b"22", b"333")[:len(content.chunks)]
  blob = head + b"".join(blocks.pack(head, i, data, content.single_chunk) for i, data in enumerate(chunks))
  with pytest.raises(BitstreamError, match="damaged: .* is shorter than its checksums"):
    parse(blob)


def test_a_profile_is_compressed():
  assert len(write(CONTENT._replace(icc_profile=PROFILE))) < len(write(CONTENT)) + 50


@pytest.mark.parametrize("content", [CONTENT, SINGLE, CONTENT._replace(icc_profile=PROFILE), PORTABLE, PORTABLE_SINGLE,
                                     PORTABLE._replace(skipped_rows=5)])
def test_every_shorter_file_is_cut_short_or_not_a_file(content):
  blob = write(content)
  for length in range(len(blob)):
    with pytest.raises(BitstreamError, match="truncated" if length >= 4 else "not a .mlic file"):
      parse(blob[:length])


@pytest.mark.parametrize("received, missing", [
    (0, r"the hyperprior \(z\) and all slices are"), (1, "slices 1 to 3 of 3 are"), (2, "slices 2 to 3 of 3 are"),
    (3, "slice 3 of 3 is")])
def test_a_cut_file_names_what_is_missing(received, missing):
  blob = write(CONTENT)
  end = [HEADER_SIZE, *bitstream.chunk_ends(blob)][received]
  for length in (end, end + 1, end + 2):
    with pytest.raises(BitstreamError, match=f"truncated: it has {length} bytes, and {missing} missing"):
      parse(blob[:length])


@pytest.mark.parametrize("content", [CONTENT, CONTENT._replace(icc_profile=PROFILE), PORTABLE])
def test_of_a_cut_file_partial_reads_the_chunks_that_are_whole(content):
  blob = write(content)
  ends = bitstream.chunk_ends(blob)
  assert len(ends) == 4 and ends[-1] == len(blob)
  for length in range(len(blob) + 1):
    received = sum(end <= length for end in ends)
    if not received:
      with pytest.raises(BitstreamError):
        parse(blob[:length], partial=True)
    else:
      part = parse(blob[:length], partial=True)
      checksums = content.symbol_checksums[:received - 1]
      assert part == content._replace(chunks=CHUNKS[:received], symbol_checksums=checksums)
      assert part.num_received == received - 1


def test_partial_reads_up_to_the_slice_that_is_damaged_but_wants_z_and_the_profile():
  blob = bytearray(write(CONTENT._replace(icc_profile=PROFILE)))
  ends = bitstream.chunk_ends(blob)
  blob[ends[3] - 1] ^= 1
  assert parse(bytes(blob), partial=True).chunks == CHUNKS[:3]
  with pytest.raises(BitstreamError, match="damaged: the checksum of slice 3 of 3 does not match; --partial"):
    parse(bytes(blob))
  blob[ends[0] - 1] ^= 1
  with pytest.raises(BitstreamError, match="hyperprior"):
    parse(bytes(blob), partial=True)
  blob[HEADER_SIZE + 5] ^= 1
  with pytest.raises(BitstreamError, match="profile"):
    parse(bytes(blob), partial=True)


def test_of_a_single_chunk_partial_reads_nothing():
  blob = write(SINGLE)
  with pytest.raises(BitstreamError, match="truncated: .* the coded data is missing"):
    parse(blob[:-1], partial=True)
  with pytest.raises(BitstreamError, match="damaged"):
    parse(blob[:-1] + b"?", partial=True)


def test_a_longer_file_is_damaged():
  size = len(write(CONTENT))
  with pytest.raises(BitstreamError, match=f"{size + 1} bytes, but its content ends after {size}"):
    parse(write(CONTENT) + b"\0")


@pytest.mark.parametrize("content", [CONTENT, SINGLE, CONTENT._replace(icc_profile=PROFILE), PORTABLE, PORTABLE_SINGLE])
def test_every_altered_bit_is_noticed(content):
  blob = write(content)
  for i in range(8 * len(blob)):
    altered = bytearray(blob)
    altered[i // 8] ^= 1 << i % 8
    with pytest.raises(BitstreamError):
      parse(bytes(altered))


def test_a_chunk_at_another_position_or_of_another_image_is_detected():
  same = CONTENT._replace(chunks=(b"twin",) * 4)
  blob = write(same)
  ends = [HEADER_SIZE, *bitstream.chunk_ends(blob)]
  blocks = [blob[a:b] for a, b in zip(ends, ends[1:])]
  assert len(set(blocks)) == 4
  with pytest.raises(BitstreamError, match="slice 1 of 3"):
    parse(blob[:HEADER_SIZE] + blocks[0] + blocks[2] + blocks[1] + blocks[3])
  other = write(same._replace(width=81))
  with pytest.raises(BitstreamError, match="hyperprior"):
    parse(other[:HEADER_SIZE] + b"".join(blocks))


def test_another_version_is_named():
  blob = write(CONTENT)
  with pytest.raises(BitstreamError, match="format version 6; this program reads versions 2 to 5$"):
    parse(blob[:4] + b"\6")
  with pytest.raises(BitstreamError, match="version 1; this program reads versions 2 to 5, and version 1 was never"):
    parse(blob[:4] + b"\1" + blob[5:])


@pytest.mark.parametrize("content", [CONTENT, PORTABLE])
def test_a_file_that_leaves_elements_out_says_so_by_a_flag_and_a_byte(content):
  blob, other = write(content), write(content._replace(skipped_rows=5))
  head = len(blob) - len(write(content)[HEADER_SIZE:]) + 6 * bool(content.origin) - bitstream.CHECKSUM.size
  assert other[5] == blob[5] | 8 and len(other) == len(blob) + 1
  assert other[:5] + other[6:head] == blob[:5] + blob[6:head] and other[head] == 5
  for rows in 0, 64, 255:
    damaged = other[:head] + bytes([rows])
    damaged += bitstream.CHECKSUM.pack(zlib.crc32(damaged) & 0xFFFF) + other[head + 3:]
    with pytest.raises(BitstreamError, match=f"skips {rows} CDF rows; wanted 1 to 63"):
      parse(damaged)


@pytest.mark.parametrize("fields, message", [
    ({"flags": 32}, "flags 0x20; version 4 has 0x01, 0x02, 0x04, 0x08 and 0x10"), ({"flags": 8}, "damaged"),
    ({"version": 2, "flags": 8}, "flags 0x08; version 2 has 0x01, 0x02 and 0x04"), ({"flags": 4}, "damaged"),
    ({"version": 3, "flags": 16}, "damaged"), ({"flags": 16}, "damaged"),
    ({"height": 2**31}, "limit is 512"),
    ({"height": 0}, "0x80; wanted at least 1x1"),
    ({"slices": 0}, "0 slices"), ({"slices": 255}, "255 slices"), ({"slices": 2}, "damaged"),
    ({"slices": 9}, "damaged"), ({"flags": 1}, "damaged"), ({"flags": 2}, "damaged")])
def test_a_bad_header_is_refused_though_its_checksum_fits(fields, message):
  with pytest.raises(BitstreamError, match=message):
    parse(with_header(write(CONTENT), **fields))


@pytest.mark.parametrize("length", [
    b"\x8a\0", b"\xff\xff\xff\xff\xff\1", b"\xff\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x80"])
def test_a_length_has_one_form_and_five_bytes_at_most(length):
  with pytest.raises(BitstreamError, match="damaged: a length"):
    parse(write(CONTENT)[:HEADER_SIZE] + length + b"some bytes")


def test_a_length_far_beyond_the_file_takes_no_memory():
  with pytest.raises(BitstreamError, match="truncated"):
    parse(write(CONTENT)[:HEADER_SIZE] + b"\xff\xff\xff\xff\x0f" + b"some bytes")


def test_a_profile_that_unpacks_to_more_than_a_megabyte_is_refused_before_it_does(monkeypatch):
  with pytest.raises(BitstreamError, match="color profile of the image has 1048577 bytes"):
    write(CONTENT._replace(icc_profile=bytes(bitstream.PROFILE_MAX + 1)))
  largest = CONTENT._replace(icc_profile=bytes(bitstream.PROFILE_MAX))
  assert parse(write(largest)) == largest
  monkeypatch.setattr(blocks, "pack_profile", lambda _: zlib.compress(bytes(10**8)))
  with pytest.raises(BitstreamError, match="more than 1048576 bytes"):
    parse(write(largest))


@pytest.mark.parametrize("packed", [
    b"", b"no zlib data", zlib.compress(PROFILE)[:-6], zlib.compress(PROFILE) + b"more"])
def test_a_profile_that_does_not_unpack_is_refused_though_its_checksum_fits(packed, monkeypatch):
  monkeypatch.setattr(blocks, "pack_profile", lambda _: packed)
  with pytest.raises(BitstreamError, match="color profile"):
    parse(write(CONTENT._replace(icc_profile=PROFILE)))


@pytest.mark.parametrize("content, message", [
    (CONTENT._replace(num_slices=255, chunks=(b"",) * 256), "255 slices; a file holds 1 to 254"),
    (CONTENT._replace(height=2**32), "below 2.32"), (CONTENT._replace(width=0), "at least 1x1")])
def test_what_the_format_cannot_hold_is_not_written(content, message):
  with pytest.raises(BitstreamError, match=message):
    write(content)


def test_the_size_limit_is_the_caller_s_choice():
  with pytest.raises(BitstreamError, match="100x80"):
    parse(write(CONTENT), pixels_max=7999)
  assert parse(write(CONTENT), pixels_max=8000) == CONTENT
  huge = CONTENT._replace(height=10**5, width=10**5)
  with pytest.raises(BitstreamError, match="10000 megapixels; the limit is 512"):
    parse(write(huge))
  assert parse(write(huge), pixels_max=10**10) == huge


def test_quality_is_rounded_to_what_a_file_holds():
  quality = bitstream.round_quality(3.3)
  assert abs(quality - 3.3) <= 1 / 512
  assert parse(write(CONTENT._replace(quality=quality))).quality == quality


# --- hostile files ------------------------------------------------------------------

def outcome(blob, partial):
  """Returns None, or the line that refuses the file; any other outcome fails the test."""
  try:
    content = parse(blob, partial=partial)
  except BitstreamError as error:
    assert str(error) and "\n" not in str(error)
    return str(error)
  assert 0 <= content.num_received <= content.num_slices and sum(map(len, content.chunks)) <= len(blob)
  return None


CONTENTS = st.builds(
    lambda chunks, single, profile, quality, sides, origin: Bitstream(
        b"8 bytes.", *sides, quality, len(chunks) - 1, (b"".join(chunks),) if single else tuple(chunks), single,
        profile, origin, (7,) * (len(chunks) - 1) if origin else ()),
    st.lists(st.binary(max_size=300), min_size=2, max_size=12), st.booleans(), st.none() | st.binary(max_size=200),
    st.none() | st.integers(256, 2560).map(lambda q: q / 256), st.tuples(*[st.integers(1, 20_000)] * 2),
    st.none() | st.just(ORIGIN))


def damaged(content, data):
  """Returns a file of `content` with flipped, removed, inserted or reordered parts."""
  blob = bytearray(write(content))
  for _ in range(data.draw(st.integers(1, 4))):
    place, size = data.draw(st.integers(0, len(blob))), data.draw(st.integers(1, 40))
    match data.draw(st.sampled_from(["flip", "cut", "remove", "insert", "move"])):
      case "flip" if place < len(blob):
        blob[place] ^= 1 << data.draw(st.integers(0, 7))
      case "cut":
        del blob[place:]
      case "remove":
        del blob[place:place + size]
      case "insert":
        blob[place:place] = data.draw(st.binary(min_size=1, max_size=40))
      case "move":
        piece = blob[place:place + size]
        del blob[place:place + size]
        blob[len(blob) // 2:len(blob) // 2] = piece
  return bytes(blob)


def check_damaged(content, data):
  """16 bits accept one damaged chunk in 65536, so the test does not count refusals."""
  blob = damaged(content, data)
  outcome(blob, partial=False)
  outcome(blob, partial=True)


@settings(max_examples=200, deadline=None)
@given(CONTENTS, st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(content, data):
  check_damaged(content, data)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(CONTENTS, st.data())
def test_ten_thousand_damaged_files_are_read_or_refused_in_one_line(content, data):
  check_damaged(content, data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.sampled_from([0, 4, 5, HEADER_SIZE, bitstream.HEADER_SIZE_MAX]), st.booleans(),
       st.fixed_dictionaries({}, optional={"flags": st.integers(0, 255), "slices": st.integers(0, 255),
                                           "height": st.integers(0, 2**32 - 1), "quality": st.integers(0, 2**16 - 1)}))
def test_arbitrary_bytes_behind_any_part_of_a_header_are_refused_or_read(blob, begun, partial, fields):
  outcome(with_header(write(CONTENT), **fields)[:begun] + blob, partial)
