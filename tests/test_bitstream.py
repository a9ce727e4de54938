"""The file format: what is written is read back, and everything else is refused in one line."""
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_jax.coding import bitstream
from mlic_jax.coding.bitstream import Bitstream, BitstreamError, parse, write

CONTENT = Bitstream(b"8 bytes.", height=100, width=80, quality=2.5, stream=b"some coded symbols")


@pytest.mark.parametrize("content", [
    CONTENT, CONTENT._replace(quality=None), CONTENT._replace(stream=b""),
  CONTENT._replace(height=1, width=500_000_000)])
def test_parse_is_the_inverse_of_write(content):
  assert parse(write(content)) == content


def test_a_file_costs_32_bytes_beside_its_stream():
  assert len(write(CONTENT)) == len(CONTENT.stream) + 32


def test_every_shorter_file_is_cut_short_or_not_a_file():
  blob = write(CONTENT)
  for length in range(len(blob)):
    with pytest.raises(BitstreamError, match="cut short" if length >= 4 else "not a .mlic file"):
      parse(blob[:length])


def test_a_longer_file_is_damaged():
  with pytest.raises(BitstreamError, match="51 bytes, its header says 50"):
    parse(write(CONTENT) + b"\0")


def test_every_altered_bit_is_noticed():
  blob = write(CONTENT)
  for i in range(8 * len(blob)):
    altered = bytearray(blob)
    altered[i // 8] ^= 1 << i % 8
    with pytest.raises(BitstreamError):
      parse(bytes(altered))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_arbitrary_bytes_are_refused_in_one_line(blob, with_magic):
  with pytest.raises(BitstreamError) as error:
    parse(bitstream.MAGIC + blob if with_magic else blob)
  assert "\n" not in str(error.value)


def test_a_newer_version_is_named():
  blob = bytearray(write(CONTENT))
  blob[4] = 2
  with pytest.raises(BitstreamError, match="format version 2; this program reads up to 1"):
    parse(bytes(blob))


@pytest.mark.parametrize("field, value, message", [
    (5, 1, "flags 0x01"), (14, 255, "limit is 512"), (17, 0, "0x80; at least 1x1"), (4, 0, "version 0")])
def test_a_bad_field_is_refused_though_the_checksum_fits(field, value, message):
  body = bytearray(write(CONTENT)[:-4])
  body[field] = value
  with pytest.raises(BitstreamError, match=message):
    parse(bytes(body) + bitstream.CHECKSUM.pack(zlib.crc32(body)))


def test_the_size_limit_is_the_caller_s_choice():
  with pytest.raises(BitstreamError, match="100x80"):
    parse(write(CONTENT), pixels_max=7999)
  assert parse(write(CONTENT), pixels_max=8000) == CONTENT


def test_quality_is_rounded_to_what_a_file_holds():
  quality = bitstream.round_quality(3.3)
  assert abs(quality - 3.3) <= 1 / 512
  assert parse(write(CONTENT._replace(quality=quality))).quality == quality
