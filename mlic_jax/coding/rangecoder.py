"""Integers to bytes and back, by the range coder of TensorFlow Compression.

    encoder = Encoder(table)                            decoder = Decoder(table, stream)
    encoder.encode(symbols, rows)   pass by pass        symbols = decoder.decode(rows)
    encoder.encode_grids(grids, elements)               grids = decoder.decode_grids(elements)
    stream = encoder.finish()                           decoder.finish()

Any int32 within 2**28 of the offset of its row is coded exactly; nothing is ever clipped. What a row has no cell for
is coded as the last cell of the row, the escape. The distances of the escaped symbols to their row follow at the end
of the pass in an Elias gamma code, which goes through the same coder:

    d = offset - symbol             sign 1    below the row       gamma code of d: n as a symbol of the length row
    d = symbol - offset - cells + 1 sign 0    above the row       (probability 2**-(n+1)), the n bits of d below its
                                                                  leading one, and the sign, as symbols of the bit row

The ops have such an escape of their own, element by element (a negative precision turns it on). It is not used: a
decoder then reads gamma lengths in a loop without end as soon as it runs past the end of a damaged stream, where
everything is zeros. Here a stream of any bytes ends after the expected number of symbols.

There are two coders, which write and read the same bytes: `tfc`, the ops themselves (rangecoder_tfc.py), and `numba`,
which needs no TensorFlow (rangecoder_numba.py).
"""
import functools
import importlib
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np

from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.cdf_tables import PRECISION, CDFTable, check_table, quantize_pmf
from mlic_jax.coding.portable_cdf import (
  BLOCK_SIZES,
  CHOICE_COUNTS,
  FIXED_SHARE,
  FIXED_SIZE,
  GRIDS,
  HALVED_COUNTS,
  SAFE_SHARES,
  SINGLE_SHARE,
  Grids,
  max_size_index,
  num_blocks,
)

LENGTHS = 29                      # of gamma codes, 0 .. 28
DISTANCE_MAX = 2**28              # exclusive, so that sums stay within int32
PACKAGES = {"numba": "numba", "tfc": "tensorflow_compression_ops"}  # of the coders; the first starts faster


class SymbolError(ValueError):
  """A symbol too far from its coding table, which happens with a broken checkpoint; one line."""


class CoderMissingError(ValueError):
  """A range coder that does not exist or is not installed; one line."""


def choose(coder: str | None = None, order: Sequence[str] = tuple(PACKAGES)) -> str:
  """`coder`, or where that is None the first of `order` that is installed. Imports nothing.

  CoderMissingError for a name that is none.
  """
  if coder is None:
    return next((name for name in order if importlib.util.find_spec(PACKAGES[name])), order[0])
  if coder not in PACKAGES:
    raise CoderMissingError(f"no range coder {coder!r}; there are {', '.join(PACKAGES)}")
  return coder


class Encoder:
  """A range encoder over one table; passes are appended to one stream. CoderMissingError where it is not installed."""

  def __init__(self, table: CDFTable, coder: str | None = None):
    self._rows = _Rows(table)
    self._writer = _module(coder).Writer(self._rows.lookup, self._rows.starts)

  def encode(self, symbols: np.ndarray, rows: np.ndarray) -> None:
    """Appends int32 symbols under the rows of the table, two arrays of one shape, in C order.

    SymbolError when a symbol lies further than 2**28 from its row.
    """
    symbols, rows = np.ravel(symbols), self._rows.checked(rows)
    cells = symbols.astype(np.int64) - self._rows.offset[rows]
    escape = self._rows.escape[rows]
    escaped = (cells < 0) | (cells >= escape)
    self._push(np.where(escaped, escape, cells), rows)
    if escaped.any():
      self._push_gamma(cells[escaped], escape[escaped])

  def encode_grids(self, grids: Grids, elements: int) -> None:
    """Appends the grids of a pass of so many elements (portable_cdf.py): the size of its blocks, the share, choices.

    The size is not written where there is but one, nor the share, SINGLE_SHARE, of a single block. SymbolError for
    choices that are none."""
    choices, most = grids.choices, max_size_index(elements)
    if choices.size and not 0 <= choices.min() <= choices.max() < GRIDS:
      raise SymbolError(f"grids {choices.min()} to {choices.max()} came; there are 0 to {GRIDS - 1}")
    share = SAFE_SHARES.index(grids.share)
    if most:
      self._push(np.array([most - BLOCK_SIZES.index(grids.size)]), self._rows.halved_row)
    if choices.size > 1:
      self._push(np.array([share]), self._rows.share_row)
    self._push(choices, self._rows.choice_rows[share])

  def _push_gamma(self, cells, escape):
    below = cells < 0
    distance = np.where(below, -cells, cells - escape + 1)  # at least 1
    if distance.max() >= DISTANCE_MAX:
      raise SymbolError(f"a symbol lies {distance.max()} beyond its coding table; {DISTANCE_MAX - 1} is the most")
    length = np.frexp(distance)[1] - 1
    self._push(length, np.full_like(length, self._rows.length_row))
    bits = np.concatenate([distance[:, None] >> np.arange(LENGTHS - 2, -1, -1) & 1, below[:, None]], axis=1)
    self._push(bits[_written(length)], self._rows.bit_row)

  def _push(self, cells, rows):
    rows = np.broadcast_to(rows, cells.shape)
    self._writer.push(np.ascontiguousarray(rows, np.int32), np.ascontiguousarray(cells, np.int32))

  def finish(self) -> bytes:
    """The stream. The encoder is spent afterwards."""
    return self._writer.finish()


class Decoder:
  """A range decoder over the table that the encoder had."""

  def __init__(self, table: CDFTable, stream: bytes, coder: str | None = None):
    self._rows = _Rows(table)
    self._reader = _module(coder).Reader(stream, self._rows.lookup, self._rows.starts)

  def decode(self, rows: np.ndarray) -> np.ndarray:
    """The int32 symbols of one pass, in the shape of `rows`. The wrong stream gives wrong symbols, not an error."""
    flat = self._rows.checked(rows)
    cells, escape = self._pull(flat), self._rows.escape[flat]
    escaped = cells == escape
    if escaped.any():
      cells[escaped] = self._pull_gamma(escape[escaped])
    return (cells + self._rows.offset[flat]).reshape(np.shape(rows))

  def decode_grids(self, elements: int, fixed: bool = False) -> Grids:
    """The grids of a pass of so many elements; choices are 0 .. GRIDS - 1 whatever the stream holds.

    `fixed`: of a file of version 2 or 3, where size and share are FIXED_SIZE and FIXED_SHARE and not in the stream."""
    one = lambda row: int(self._pull(np.full(1, row))[0])
    if fixed:
      size, share, blocks = FIXED_SIZE, SAFE_SHARES.index(FIXED_SHARE), num_blocks(elements, FIXED_SIZE)
    else:
      most = max_size_index(elements)
      size = BLOCK_SIZES[max(most - one(self._rows.halved_row), 0) if most else 0]
      blocks = num_blocks(elements, size)
      share = one(self._rows.share_row) if blocks > 1 else SAFE_SHARES.index(SINGLE_SHARE)
    choices = self._pull(np.full(blocks, self._rows.choice_rows[share]))
    return Grids(size, SAFE_SHARES[share], choices)

  def _pull_gamma(self, escape):
    length = self._pull(np.full(escape.shape, self._rows.length_row))
    written = _written(length)
    bits = np.zeros(written.shape, np.int32)
    bits[written] = self._pull(np.full(written.sum(), self._rows.bit_row))
    distance = (bits[:, :-1] << np.arange(LENGTHS - 2, -1, -1)).sum(axis=1, dtype=np.int32) + (1 << length)
    return np.where(bits[:, -1] == 1, -distance, distance + escape - 1)

  def _pull(self, rows):
    return self._reader.pull(np.ascontiguousarray(rows, np.int32))

  def finish(self) -> None:
    """BitstreamError when the stream cannot have ended here. The check is a weak one, files carry a checksum."""
    if not self._reader.finish():
      raise BitstreamError("the coded data does not end where it should; it was made with another model or is damaged")


def _written(length: np.ndarray) -> np.ndarray:
  """(E, LENGTHS) bool, which of the bits of 2**27 .. 2**0 are written for a length; the last column is the sign."""
  below_leading_one = np.arange(LENGTHS - 2, -1, -1) < length[:, None]
  return np.concatenate([below_leading_one, np.ones((len(length), 1), bool)], axis=1)


class _Rows:
  """A table as the coders take it; behind its own rows, two of the gamma code, and those of the grids of a pass."""

  def __init__(self, table: CDFTable):
    shared = _shared_rows()
    self.lookup = np.concatenate([table.lookup, *shared]).astype(np.int32)
    self.offset = table.offset
    ends = np.flatnonzero(table.lookup == 2**PRECISION) + 1
    begins = np.concatenate([[0], ends])
    check_table(table)
    self.escape = (np.diff(begins) - 3).astype(np.int32)  # (rows,), the last cell; a row holds cells + 1 counts
    self.starts = np.concatenate([begins, begins[-1] + np.cumsum(list(map(len, shared)))])  # int64, and the end
    of_shared = len(table.offset) + np.arange(len(shared))
    self.length_row, self.bit_row, self.halved_row, self.share_row, *self.choice_rows = of_shared

  def checked(self, rows: np.ndarray) -> np.ndarray:
    """(n,) int32, the rows of a pass; SymbolError when the table does not have them."""
    if rows.size and not 0 <= rows.min() <= rows.max() < len(self.offset):
      raise SymbolError(f"rows {rows.min()} to {rows.max()} came, the coding table has 0 to {len(self.offset) - 1}")
    return np.ascontiguousarray(rows, np.int32).ravel()


@functools.cache
def _shared_rows() -> tuple[np.ndarray, ...]:
  """The rows that no checkpoint holds: lengths of gamma codes, bits, sizes of blocks, shares, and grids by share."""
  equal = lambda bits: [bits, *range(2**bits + 1)]
  counted = lambda counts: [PRECISION, 0, *np.cumsum(counts)]
  lengths = quantize_pmf(0.5**np.arange(1, LENGTHS + 1))
  return tuple(map(np.array, (counted(lengths), equal(1), counted(HALVED_COUNTS), equal(3),
                              *map(counted, CHOICE_COUNTS))))


def load_in_background(coder: str | None = None) -> None:
  """Begins to import a coder beside other work. What goes wrong is said by the first use."""
  ThreadPoolExecutor(1).submit(_module, coder)


def _module(coder: str | None) -> ModuleType:
  """rangecoder_numba or rangecoder_tfc. Importing it is what takes time, and happens once, whichever threads ask."""
  coder = choose(coder)
  try:
    return importlib.import_module(f"mlic_jax.coding.rangecoder_{coder}")
  except ImportError as error:
    raise CoderMissingError(f"files want a range coder, and {coder} cannot be had: {error}; "
                            "see requirements.txt") from error
