"""Tests of the two range coders: they write equal bytes, and each reads those of the other."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.forked_programs import Program, run_forks
from helpers.light_codec import light_model
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_jax.coding import rangecoder, rangecoder_numba
from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.cdf_tables import CDFTable, TableError, gaussian_table
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.portable_cdf import BLOCK_SIZES, SAFE_SHARES, SINGLE_SHARE, Grids
from mlic_jax.coding.rangecoder import PACKAGES, CoderMissingError, Decoder, Encoder, SymbolError

ROOT = Path(__file__).parents[2]
TABLE = gaussian_table(np.array([0.11, 0.5, 2.0, 9.0, 60.0]))


@st.composite
def tables(draw):
  """Returns a table with rows of random counts, some with only an escape."""
  inner = draw(st.lists(st.lists(st.integers(1, 2**16 - 1), unique=True, max_size=12), min_size=1, max_size=6))
  rows = [[16, 0, *sorted(counts), 2**16] for counts in inner]
  offset = draw(st.lists(st.integers(-2**20, 2**20), min_size=len(rows), max_size=len(rows)))
  return CDFTable(np.concatenate(rows).astype(np.int32), np.array(offset, np.int32))


def table_and_stream(rng):
  """Returns a table as those above, and a stream with runs of 0xFF and 0x00, which are where a carry goes through."""
  rows = [[16, 0, *np.unique(rng.integers(1, 2**16, rng.integers(13))), 2**16] for _ in range(rng.integers(1, 7))]
  table = CDFTable(np.concatenate(rows).astype(np.int32), rng.integers(-2**20, 2**20, len(rows)).astype(np.int32))
  parts = b"\xff" * 30, b"\0" * 30, b"\xff\xfe", rng.bytes(rng.integers(20)), rng.bytes(3)
  return table, b"".join(parts[kind] for kind in rng.integers(len(parts), size=rng.integers(9)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_both_read_any_stream_alike_and_write_what_they_read_alike(tfc, seed):
  rng = np.random.default_rng(seed)
  check_alike(tfc, TABLE, b"", np.zeros(0, np.int32))
  for _ in range(20):
    table, stream = table_and_stream(rng)
    check_alike(tfc, table, stream, rng.integers(0, len(table.offset), rng.integers(151)).astype(np.int32))


def check_alike(tfc, table, stream, rows):
  """Checks that both coders read the same cells of rows from a stream, and write the same stream of them."""
  every, count = rangecoder.PreparedTable(table), len(rows)
  ours, theirs = (module.Reader(stream, every.lookup, every.starts) for module in (rangecoder_numba, tfc))
  cells = theirs.pull(rows)
  np.testing.assert_array_equal(ours.pull(rows), cells)
  assert ours.finish() == theirs.finish()
  writers = [module.Writer(every.lookup, every.starts) for module in (rangecoder_numba, tfc)]
  for writer in writers:
    writer.push(rows[:count // 3], cells[:count // 3])
    writer.push(rows[count // 3:], cells[count // 3:])
  written = [writer.finish() for writer in writers]
  assert written[0] == written[1]
  for module in rangecoder_numba, tfc:
    reader = module.Reader(written[0], every.lookup, every.starts)
    np.testing.assert_array_equal(reader.pull(rows), cells)
    assert reader.finish()


@settings(max_examples=200, deadline=None)
@given(tables(), st.lists(st.lists(st.integers(-2**27, 2**27), max_size=60), max_size=5),
       st.lists(st.integers(0, 27), max_size=30), st.sampled_from(BLOCK_SIZES), st.sampled_from(SAFE_SHARES))
def test_passes_of_any_integers_are_the_same_bytes_and_each_decodes_the_other(tfc, table, passes, choices, size, share):
  passes = [np.array(symbols, np.int32) for symbols in passes]
  rows = [np.arange(symbols.size) % len(table.offset) for symbols in passes]
  written = {}
  for coder in PACKAGES:
    encoder = Encoder(table, coder)
    encoder.encode_grids(Grids(size, share if len(choices) > 1 else SINGLE_SHARE, np.array(choices, np.int32)),
                         len(choices) * size)
    for symbols, each in zip(passes, rows):
      encoder.encode(symbols, each)
    written[coder] = encoder.finish()
  assert written["numba"] == written["tfc"]
  for coder in PACKAGES:
    decoder = Decoder(table, written["numba"], coder)
    grids = decoder.decode_grids(len(choices) * size)
    assert list(grids.choices) == choices
    assert (grids.size, grids.share) == (size, share) or len(choices) < 2
    for symbols, each in zip(passes, rows):
      np.testing.assert_array_equal(decoder.decode(each), symbols)
    decoder.finish()


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.integers(0, 400), st.integers(0, 4))
def test_a_damaged_stream_gives_the_same_symbols_or_the_same_error(tfc, stream, count, row):
  found = []
  for coder in PACKAGES:
    decoder = Decoder(TABLE, stream, coder)
    symbols = decoder.decode(np.full(count, row)).tolist()
    try:
      decoder.finish()
      found.append((symbols, None))
    except BitstreamError as error:
      found.append((symbols, str(error)))
  assert found[0] == found[1]


def test_a_carry_runs_back_through_what_was_written():
  """The interval stays around 2**32 for 200 symbols, and then falls to one side of it, or the stream ends there."""
  thirds = CDFTable(np.array([16, 0, 2**15 - 1, 2**15 + 1, 2**16], np.int32), np.array([0], np.int32))
  every = rangecoder.PreparedTable(thirds)
  for last in ([], [0], [1], [2]):
    cells = np.array([1] * 200 + last, np.int32)
    writer = rangecoder_numba.Writer(every.lookup, every.starts)
    writer.push(np.zeros_like(cells), cells)
    stream = writer.finish()
    reader = rangecoder_numba.Reader(stream, every.lookup, every.starts)
    np.testing.assert_array_equal(reader.pull(np.zeros_like(cells)), cells)
    assert reader.finish()
    assert stream.startswith(b"\x7f\xff\xff" if last == [0] else b"\x80")


def test_a_file_of_one_coder_is_that_of_the_other(tfc, photograph):
  codecs = [Codec(light_model(), range_coder=coder) for coder in PACKAGES]
  assert [codec.coder.range_coder for codec in codecs] == ["numba", "tfc"]
  assert Codec(light_model()).coder.range_coder == "numba"
  blobs = [codec.encode(photograph, 2.0) for codec in codecs]
  assert blobs[0] == blobs[1]
  images = [codec.decode(blobs[0]) for codec in codecs]
  np.testing.assert_array_equal(*images)


def test_the_first_of_those_that_are_installed_is_taken_and_a_name_is_checked(monkeypatch):
  installed = {"numba", "tensorflow_compression_ops"}
  monkeypatch.setattr(rangecoder.importlib.util, "find_spec", lambda name: name in installed or None)
  assert rangecoder.choose() == "numba" and rangecoder.choose(order=("tfc", "numba")) == "tfc"
  assert rangecoder.choose("tfc") == "tfc"
  installed.remove("tensorflow_compression_ops")
  assert rangecoder.choose(order=("tfc", "numba")) == "numba"
  with pytest.raises(CoderMissingError, match="^no range coder 'huffman'; wanted one of numba, tfc$"):
    rangecoder.choose("huffman")


@pytest.mark.parametrize("coder", PACKAGES)
def test_a_missing_coder_is_one_line_that_says_where_it_comes_from(monkeypatch, coder):
  monkeypatch.delitem(sys.modules, f"mlic_jax.coding.rangecoder_{coder}", raising=False)
  monkeypatch.setitem(sys.modules, PACKAGES[coder], None)  # as if it were not installed
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  monkeypatch.setenv("MLIC_JAX_CACHE", "")
  with pytest.raises(CoderMissingError, match=f"^the range coder {coder} cannot be imported: .*see requirements.txt$"):
    Encoder(TABLE, coder)


@pytest.mark.parametrize("place, value", [(1, 5), (0, 12), (4, 2**16 + 1), (5, 0), (-1, 7)])
def test_a_table_that_is_damaged_is_refused_before_a_coder_reads_past_a_row(place, value):
  lookup = TABLE.lookup.copy()
  lookup[place] = value
  with pytest.raises(TableError, match="^the CDF table is damaged"):
    Encoder(CDFTable(lookup, TABLE.offset))


@pytest.mark.parametrize("row", [-1, len(TABLE.offset)])
def test_a_row_that_the_table_does_not_have_is_refused(row):
  with pytest.raises(SymbolError, match="the CDF table has 0 to 4"):
    Encoder(TABLE).encode(np.zeros(2, np.int32), np.array([0, row]))
  with pytest.raises(SymbolError, match="the CDF table has 0 to 4"):
    Decoder(TABLE, b"").decode(np.array([0, row]))


@pytest.mark.parametrize("choice", [-1, 28])
def test_a_grid_that_there_is_not_is_refused(choice):
  with pytest.raises(SymbolError, match="wanted 0 to 27"):
    Encoder(TABLE).encode_grids(Grids(2048, 0.7, np.array([0, choice])), 4096)


IN_TWO_THREADS = """
import os, threading
from mlic_jax.coding.rangecoder import _module
before, modules = dict(os.environ), []
threads = [threading.Thread(target=lambda: modules.append(_module("tfc"))) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert dict(os.environ) == before, "the environment changed"
assert modules[0] is modules[1]
"""
FAKE_TENSORFLOW = """
import os, time
open(os.environ["LOG"], "a").write(os.environ["TF_USE_LEGACY_KERAS"] + os.environ["TF_CPP_MIN_LOG_LEVEL"] + " ")
time.sleep(0.2)
class config: set_visible_devices = staticmethod(lambda devices, kind: None)
"""


@pytest.mark.parametrize("before, during", [({}, "13 "),
                                            ({"TF_CPP_MIN_LOG_LEVEL": "0", "TF_USE_LEGACY_KERAS": "0"}, "10 ")])
def test_two_threads_import_tensorflow_once_and_the_environment_is_left_as_it_was(tmp_path, before, during):
  (tmp_path / "tensorflow.py").write_text(FAKE_TENSORFLOW)
  (tmp_path / "tensorflow_compression_ops.py").write_text("")
  env = {name: value for name, value in os.environ.items() if not name.startswith("TF_")} | before
  env |= {"LOG": str(tmp_path / "log"), "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
  subprocess.run([sys.executable, "-c", IN_TWO_THREADS], check=True, timeout=120, env=env)
  assert (tmp_path / "log").read_text() == during


def test_machine_code_is_cached_and_runs_without_importing_numba(tmp_path):
  code = "import sys; from mlic_jax.coding import rangecoder_numba; print('numba' in sys.modules)"
  folders = str(tmp_path), str(tmp_path), ""   # with the last one nothing is cached, and it works
  programs = [Program(code, [], {"MLIC_JAX_CACHE": folder}) for folder in folders]
  found = run_forks("import mlic_jax.coding.rangecoder, mlic_jax.runtime.machine_code", programs, ROOT)
  assert found == [(0, b"True\n", ""), (0, b"False\n", ""), (0, b"True\n", "")]
