"""Tests of the range coder: exact for every integer, near the Shannon bound, and robust to damaged streams."""
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.cdf_tables import CDFTable, gaussian_table
from mlic_jax.coding.portable_cdf import BLOCK_SIZES, SAFE_SHARES, SINGLE_SHARE, Grids
from mlic_jax.coding.rangecoder import DISTANCE_MAX, Decoder, Encoder, SymbolError

SCALES = np.array([0.11, 0.5, 2.0, 9.0])
TABLE = gaussian_table(SCALES)
HALVED = [22937, 3932, 5898, 8520, 8520, 6554, 3932, 2621, 1311, 1311]
FORMAT = Path(__file__).resolve().parents[2] / "docs" / "format.md"


@pytest.fixture(params=["numba", "tfc"])
def coder(request):
  """Runs each test with both range coders."""
  if request.param == "tfc":
    request.getfixturevalue("tfc")
  return request.param


def code(symbols, rows, coder):
  encoder = Encoder(TABLE, coder)
  encoder.encode(symbols, rows)
  return encoder.finish()


def test_passes_decode_to_the_symbols_that_went_in(coder):
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 4, shape) for shape in ((7, 5, 3), (11,), (0, 4), (2, 2))]
  passes = [np.rint(rng.normal(0, SCALES[r])).astype(np.int32) for r in rows]
  encoder = Encoder(TABLE, coder)
  for symbols, r in zip(passes, rows):
    encoder.encode(symbols, r)
  decoder = Decoder(TABLE, encoder.finish(), coder)
  for symbols, r in zip(passes, rows):
    np.testing.assert_array_equal(decoder.decode(r), symbols)
  decoder.finish()


def test_symbols_far_outside_the_table_survive(coder):
  reach = -TABLE.offset
  near = np.concatenate([[-r - 2, -r - 1, -r, r, r + 1, r + 2] for r in reach])
  far = [sign * 2**n + d for n in range(28) for sign in (-1, 1) for d in (-1, 0, 1)] + [2**28 - 1, 1 - 2**28]
  symbols = np.concatenate([near, far, np.zeros(5)]).astype(np.int32)
  for row in range(4):
    rows = np.full(symbols.shape, row)
    decoder = Decoder(TABLE, code(symbols, rows, coder), coder)
    np.testing.assert_array_equal(decoder.decode(rows), symbols)
    decoder.finish()


def test_a_symbol_beyond_the_gamma_code_is_refused(coder):
  with pytest.raises(SymbolError, match="beyond its CDF row"):
    code(np.array([DISTANCE_MAX + 10], np.int32), np.array([0]), coder)


def test_an_escape_costs_what_elias_gamma_costs(coder):
  bits = 8 * len(code(np.full(1000, 1000, np.int32), np.zeros(1000, int), coder)) / 1000
  distance = 1000 - 1  # beyond the row of scale 0.11, which ends at 1
  gamma = 2 * np.floor(np.log2(distance)) + 1
  assert bits == pytest.approx(16 + gamma + 1, abs=0.1)  # 16 for the escape, 1 for the sign


def test_streams_are_within_a_thousandth_of_the_shannon_bound(coder):
  rng = np.random.default_rng(1)
  rows = rng.integers(0, 4, 20_000)
  symbols = np.clip(np.rint(rng.normal(0, SCALES[rows])), TABLE.offset[rows], -TABLE.offset[rows]).astype(np.int32)
  ends = np.flatnonzero(TABLE.lookup == 2**16)
  starts = np.concatenate([[0], ends[:-1] + 1])
  cell = starts[rows] + 1 + symbols - TABLE.offset[rows]
  bound = -np.log2((TABLE.lookup[cell + 1] - TABLE.lookup[cell]) / 2**16).sum()
  assert bound <= 8 * len(code(symbols, rows, coder)) <= 1.001 * bound + 16


def test_any_bytes_decode_to_some_symbols(coder):
  """The escape mode of the ops fails here with an endless loop."""
  rng = np.random.default_rng(2)
  streams = [b"", b"\0" * 40, b"\xff" * 40, b"\xff\xff", b"\xff\xff\xc0"] + [rng.bytes(n) for n in range(40)]
  for stream in streams:
    rows = rng.integers(0, 4, 3000)
    assert Decoder(TABLE, stream, coder).decode(rows).shape == rows.shape


def test_a_stream_with_bytes_left_over_is_noticed(coder):
  rows = np.zeros(50, int)
  decoder = Decoder(TABLE, code(np.zeros(50, np.int32), rows, coder) + b"left over", coder)
  decoder.decode(rows)
  with pytest.raises(BitstreamError, match="has the wrong length"):
    decoder.finish()


def test_a_stream_ends_within_a_byte_of_its_information(coder):
  """This is the overhead of a chunk for a slice, in addition to length and checksum."""
  rng = np.random.default_rng(3)
  ends = np.flatnonzero(TABLE.lookup == 2**16)
  start = ends[1] + 2                                    # row 2: behind its precision
  counts = np.diff(TABLE.lookup[start:ends[2] + 1])
  for _ in range(60):
    symbols = np.rint(rng.normal(0, SCALES[2], rng.integers(1, 200))).astype(np.int32)
    information = -np.log2(counts[symbols - TABLE.offset[2]] / 2**16).sum() / 8
    assert len(code(symbols, np.full(symbols.shape, 2), coder)) <= information + 1


@pytest.mark.parametrize("size, share", [*zip(BLOCK_SIZES, SAFE_SHARES), (BLOCK_SIZES[-1], SAFE_SHARES[0])])
def test_grids_decode_between_the_passes_and_any_bytes_give_some(coder, size, share):
  rng = np.random.default_rng(4)
  symbols, rows = rng.integers(-1, 2, 500).astype(np.int32), rng.integers(0, 4, 500)
  encoder = Encoder(TABLE, coder)
  choices = rng.integers(0, 28, 100)
  encoder.encode_grids(Grids(size, share, choices), 99 * size + 1)
  encoder.encode(symbols, rows)
  encoder.encode_grids(Grids(256, SINGLE_SHARE, np.zeros(0, np.int32)), 0)
  encoder.encode_grids(Grids(size, SINGLE_SHARE, choices[:1]), size)
  decoder = Decoder(TABLE, encoder.finish(), coder)
  grids = decoder.decode_grids(99 * size + 1)
  assert (grids.size, grids.share) == (size, share)
  np.testing.assert_array_equal(grids.choices, choices)
  np.testing.assert_array_equal(decoder.decode(rows), symbols)
  assert decoder.decode_grids(0).choices.shape == (0,)
  single = decoder.decode_grids(size)
  assert (single.size, single.share, *single.choices) == (size, SINGLE_SHARE, choices[0])
  for stream in (b"", b"\xff" * 40, rng.bytes(1000)):
    for fixed in (False, True):
      forged = Decoder(TABLE, stream, coder).decode_grids(3000 * size, fixed)
      assert forged.choices.min() >= 0 and forged.choices.max() < 28 and forged.size in BLOCK_SIZES


def test_the_rows_that_no_checkpoint_holds_are_the_same_on_every_machine(coder):
  """The decoder computes them; docs/format.md lists their counts."""
  lookup = Encoder(TABLE, coder)._rows.lookup[len(TABLE.lookup):]
  lengths, bits, halved, eight, choices = np.split(lookup, [31, 35, 47, 57])
  choices = choices.reshape(8, 30)
  np.testing.assert_array_equal(bits, [1, 0, 1, 2])
  np.testing.assert_array_equal(eight, [3, *range(9)])
  assert all(list(row[:2]) == [16, 0] for row in (lengths, halved, *choices))
  np.testing.assert_array_equal(np.diff(halved[1:]), HALVED)
  np.testing.assert_array_equal(np.diff(lengths[1:]), [32762, 16381, 8190, 4095, *(2**n for n in range(11, 0, -1)),
                                                       *[1] * 14])
  of_share = np.diff(choices[:, 1:])
  np.testing.assert_array_equal(of_share[SAFE_SHARES.index(0.7)],
                                [45864, 13759, 4128, 1238, 371, 111, 33, 10, 3, *[1] * 19])
  listed = re.findall(r"^    0\.\d\d?  +([\d ]+)$", FORMAT.read_text(), re.M)
  np.testing.assert_array_equal(of_share, [[*counts, *[1] * (28 - len(counts))] for counts in (
      list(map(int, line.split())) for line in listed)])


def test_streams_are_those_of_the_ops_byte_for_byte_where_the_ops_cannot_run(coder):
  """The digest is that of tensorflow-compression-ops 2.17.0; only integers go in, which are equal everywhere."""
  rows = [16, 0, *(3**n for n in range(10)), 2**16], [16, 0, 2**15, 2**16 - 2, 2**16 - 1, 2**16], [16, 0, 2**16]
  table = CDFTable(np.concatenate(rows).astype(np.int32), np.array([-5, 0, 100], np.int32))
  places = np.arange(6000)
  rows, symbols = places * 7 % 3, (places * places % 911 % 16 - 6 + (places % 97 == 0) * 5000).astype(np.int32)
  encoder = Encoder(table, coder)
  encoder.encode_grids(Grids(2048, 0.7, places[:200] % 28), 200 * 2048)
  for part in np.split(places, [17, 1000]):
    encoder.encode(symbols[part], rows[part])
  stream = encoder.finish()
  assert (len(stream), hashlib.sha256(stream).hexdigest()[:16]) == (10386, "d5dc1d21bce3e465")
