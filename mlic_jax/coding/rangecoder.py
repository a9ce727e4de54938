"""Range coding of integers, with the stream format of TensorFlow Compression.

    encoder = Encoder(table)                            decoder = Decoder(table, stream)
    encoder.encode(symbols, rows)   pass by pass        symbols = decoder.decode(rows)
    encoder.encode_grids(grids, elements)               grids = decoder.decode_grids(elements)
    stream = encoder.finish()                           decoder.finish()

If each element has a row of its own, `encode_elements` and `decode_elements` take a table with these rows.

Any int32 within 2**28 of the offset of its row is coded exactly; nothing is clipped. A symbol without a cell is coded
as the last cell of the row, the escape. The distances of the escaped symbols from their rows follow at the end of the
pass in an Elias gamma code, which the same coder codes:

    d = offset - symbol             sign 1    below the row       gamma code of d: n as a symbol of the length row
    d = symbol - offset - cells + 1 sign 0    above the row       (probability 2**-(n+1)), the n bits of d below its
                                                                  leading one, and the sign, as symbols of the bit row

The escape mode of the TensorFlow Compression ops (a negative precision) is not used: past the end of a truncated
stream, where everything is zeros, its decoder reads gamma lengths in an endless loop. Here a stream of any bytes ends
after the expected number of symbols.

Two coders write and read the same bytes: `tfc` calls the ops (rangecoder_tfc.py), and `numba` needs no TensorFlow
(rangecoder_numba.py).
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

LENGTHS = 29                      # number of lengths of gamma codes, 0 .. 28
DISTANCE_MAX = 2**28              # exclusive, so that sums stay within int32
PACKAGES = {"numba": "numba", "tfc": "tensorflow_compression_ops"}  # package of each coder; the first starts faster


class SymbolError(ValueError):
  """A symbol is too far from its CDF row, for example with a broken checkpoint; the message is one line."""


class CoderMissingError(ValueError):
  """The range coder does not exist or is not installed; the message is one line."""


def choose(coder: str | None = None, order: Sequence[str] = tuple(PACKAGES)) -> str:
  """Returns `coder`, or if that is None the first installed coder of `order`. Imports nothing.

  CoderMissingError for an unknown name.
  """
  if coder is None:
    return next((name for name in order if importlib.util.find_spec(PACKAGES[name])), order[0])
  if coder not in PACKAGES:
    raise CoderMissingError(f"no range coder {coder!r}; wanted one of {', '.join(PACKAGES)}")
  return coder


def choose_for_elements(coder: str | None, distribution: str) -> str:
  """Returns the coder for a distribution with a row for each element.

  CoderMissingError for "tfc", whose ops take one table for a stream."""
  if choose(coder, ("numba",)) == "tfc":
    raise CoderMissingError(f"the range coder tfc has one table for a whole stream, and the distribution "
                            f"{distribution} a row for each element; wanted numba")
  return "numba"


class Encoder:
  """Range encodes passes into one stream, with one table. CoderMissingError if the coder is not installed.

  `table` is a CDFTable, or the result of `prepare`, which saves time if many streams have one table."""

  def __init__(self, table: "CDFTable | PreparedTable", coder: str | None = None):
    self._rows = prepare(table)
    self._writer = _module(coder).Writer(self._rows.lookup, self._rows.starts)

  def encode(self, symbols: np.ndarray, rows: np.ndarray) -> None:
    """Appends int32 symbols in C order; `rows` has the CDF row of each symbol, in the same shape.

    SymbolError if a symbol is 2**28 or more away from its row.
    """
    rows = self._rows.checked(rows)
    cells, escape, escaped = _cells(np.ravel(symbols), self._rows.offset[rows], self._rows.escape[rows])
    self._push(np.where(escaped, escape, cells), rows)
    if escaped.any():
      self._push_gamma(cells[escaped], escape[escaped])

  def encode_elements(self, symbols: np.ndarray, table: CDFTable) -> None:
    """Appends n int32 symbols, each under its row of a table of n rows; escapes as in `encode`. By numba only."""
    own = _ElementRows(table)
    cells, escape, escaped = _cells(symbols, table.offset, own.escape)
    self._writer.push_elements(own.lookup, own.starts, np.where(escaped, escape, cells).astype(np.int32))
    if escaped.any():
      self._push_gamma(cells[escaped], escape[escaped])

  def encode_grids(self, grids: Grids, elements: int) -> None:
    """Appends the grids of a pass with `elements` elements (portable_cdf.py): block size, share, choices.

    The block size is omitted if only one is possible, and the share for a single block, where it is SINGLE_SHARE.
    SymbolError for choices outside 0 .. GRIDS - 1."""
    choices, largest = grids.choices, max_size_index(elements)
    if choices.size and not 0 <= choices.min() <= choices.max() < GRIDS:
      raise SymbolError(f"the grids are {choices.min()} to {choices.max()}; wanted 0 to {GRIDS - 1}")
    share = SAFE_SHARES.index(grids.share)
    if largest:
      self._push(np.array([largest - BLOCK_SIZES.index(grids.size)]), self._rows.halved_row)
    if choices.size > 1:
      self._push(np.array([share]), self._rows.share_row)
    self._push(choices, self._rows.choice_rows[share])

  def _push_gamma(self, cells, escape):
    below = cells < 0
    distance = np.where(below, -cells, cells - escape + 1)  # at least 1
    if distance.max() >= DISTANCE_MAX:
      raise SymbolError(f"a symbol lies {distance.max()} beyond its CDF row; the limit is {DISTANCE_MAX - 1}")
    length = np.frexp(distance)[1] - 1
    self._push(length, np.full_like(length, self._rows.length_row))
    bits = np.concatenate([distance[:, None] >> np.arange(LENGTHS - 2, -1, -1) & 1, below[:, None]], axis=1)
    self._push(bits[_written(length)], self._rows.bit_row)

  def _push(self, cells, rows):
    rows = np.broadcast_to(rows, cells.shape)
    self._writer.push(np.ascontiguousarray(rows, np.int32), np.ascontiguousarray(cells, np.int32))

  def finish(self) -> bytes:
    """Returns the stream. The encoder cannot be used afterwards."""
    return self._writer.finish()


class Decoder:
  """Range decodes one stream, with the table of the encoder."""

  def __init__(self, table: "CDFTable | PreparedTable", stream: bytes, coder: str | None = None):
    self._rows = prepare(table)
    self._reader = _module(coder).Reader(stream, self._rows.lookup, self._rows.starts)

  def decode(self, rows: np.ndarray) -> np.ndarray:
    """Decodes the int32 symbols of one pass, in the shape of `rows`. A wrong stream gives wrong symbols, no error."""
    flat = self._rows.checked(rows)
    cells, escape = self._pull(flat), self._rows.escape[flat]
    escaped = cells == escape
    if escaped.any():
      cells[escaped] = self._pull_gamma(escape[escaped])
    return (cells + self._rows.offset[flat]).reshape(np.shape(rows))

  def decode_elements(self, table: CDFTable) -> np.ndarray:
    """Decodes (n,) int32 symbols, each with its own row of a table of n rows. It requires the numba coder."""
    own = _ElementRows(table)
    cells = self._reader.pull_elements(own.lookup, own.starts)
    escaped = cells == own.escape
    if escaped.any():
      cells[escaped] = self._pull_gamma(own.escape[escaped])
    return cells + table.offset

  def decode_grids(self, elements: int, fixed: bool = False) -> Grids:
    """Decodes the grids of a pass with `elements` elements; any stream gives choices in 0 .. GRIDS - 1.

    `fixed`: for files of versions 2 and 3, which always use FIXED_SIZE and FIXED_SHARE and do not store them."""
    pull_one = lambda row: int(self._pull(np.full(1, row))[0])
    if fixed:
      size, share, blocks = FIXED_SIZE, SAFE_SHARES.index(FIXED_SHARE), num_blocks(elements, FIXED_SIZE)
    else:
      largest = max_size_index(elements)
      size = BLOCK_SIZES[max(largest - pull_one(self._rows.halved_row), 0) if largest else 0]
      blocks = num_blocks(elements, size)
      share = pull_one(self._rows.share_row) if blocks > 1 else SAFE_SHARES.index(SINGLE_SHARE)
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
    """Raises BitstreamError if the stream cannot end here. The check is weak, but files have checksums as well."""
    if not self._reader.finish():
      raise BitstreamError("the coded data has the wrong length; it was written with another model or is damaged")


def _written(length: np.ndarray) -> np.ndarray:
  """Returns which of the bits 2**27 .. 2**0, and the sign, are written for each length: (E, LENGTHS) bool."""
  below_leading_one = np.arange(LENGTHS - 2, -1, -1) < length[:, None]
  return np.concatenate([below_leading_one, np.ones((len(length), 1), bool)], axis=1)


def _cells(symbols, offset, escape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the cells of symbols in rows that begin at `offset`, the escape cells, and which symbols are escaped."""
  cells = symbols.astype(np.int64) - offset
  return cells, escape, (cells < 0) | (cells >= escape)


def prepare(table: "CDFTable | PreparedTable") -> "PreparedTable":
  """Returns the table for the coders. TableError if it is damaged."""
  return table if isinstance(table, PreparedTable) else PreparedTable(table)


class _ElementRows:
  """The rows of a table with one row for each element."""

  def __init__(self, table: CDFTable):
    ends = np.flatnonzero(table.lookup == 2**PRECISION) + 1
    self.lookup, self.starts = table.lookup, np.concatenate([[0], ends])
    self.escape = (np.diff(self.starts) - 3).astype(np.int32)


class PreparedTable:
  """The table for the coders: the rows of the CDF table, then the rows of gamma codes and of grids."""

  def __init__(self, table: CDFTable):
    shared = _shared_rows()
    self.lookup = np.concatenate([table.lookup, *shared]).astype(np.int32)
    self.offset = table.offset
    ends = np.flatnonzero(table.lookup == 2**PRECISION) + 1
    begins = np.concatenate([[0], ends])
    check_table(table)
    self.escape = (np.diff(begins) - 3).astype(np.int32)  # (rows,), the last cell; a row holds cells + 1 counts
    self.starts = np.concatenate([begins, begins[-1] + np.cumsum(list(map(len, shared)))])  # int64; the end is last
    shared_rows = len(table.offset) + np.arange(len(shared))
    self.length_row, self.bit_row, self.halved_row, self.share_row, *self.choice_rows = shared_rows

  def checked(self, rows: np.ndarray) -> np.ndarray:
    """Returns the rows of a pass, flat, (n,) int32. SymbolError unless the CDF table has them."""
    if rows.size and not 0 <= rows.min() <= rows.max() < len(self.offset):
      raise SymbolError(f"the rows are {rows.min()} to {rows.max()}, but the CDF table has 0 to {len(self.offset) - 1}")
    return np.ascontiguousarray(rows, np.int32).ravel()


@functools.cache
def _shared_rows() -> tuple[np.ndarray, ...]:
  """Returns the rows of all checkpoints: lengths of gamma codes, bits, block sizes, shares, and grids by share."""
  uniform = lambda bits: [bits, *range(2**bits + 1)]
  from_counts = lambda counts: [PRECISION, 0, *np.cumsum(counts)]
  lengths = quantize_pmf(0.5**np.arange(1, LENGTHS + 1))
  return tuple(map(np.array, (from_counts(lengths), uniform(1), from_counts(HALVED_COUNTS), uniform(3),
                              *map(from_counts, CHOICE_COUNTS))))


def load_in_background(coder: str | None = None) -> None:
  """Imports a coder in a thread. The first use of the coder raises any error of the import."""
  ThreadPoolExecutor(1).submit(_module, coder)


def _module(coder: str | None) -> ModuleType:
  """Imports rangecoder_numba or rangecoder_tfc, which takes time. Python imports it once, whichever threads ask."""
  coder = choose(coder)
  try:
    return importlib.import_module(f"mlic_jax.coding.rangecoder_{coder}")
  except ImportError as error:
    raise CoderMissingError(f"the range coder {coder} cannot be imported: {error}; see requirements.txt") from error
