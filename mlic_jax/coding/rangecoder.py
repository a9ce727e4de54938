"""Integers to bytes and back, by the range coder of TensorFlow Compression. No other file touches its ops.

    encoder = Encoder(table)                            decoder = Decoder(table, stream)
    encoder.encode(symbols, rows)   pass by pass        symbols = decoder.decode(rows)
    encoder.encode_choices(choices)                     choices = decoder.decode_choices(count)
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
"""
import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.portable import CHOICE_PMF
from mlic_jax.coding.tables import PRECISION, CodingTable, quantize_pmf

LENGTHS = 29                      # of gamma codes, 0 .. 28
DISTANCE_MAX = 2**28              # exclusive, so that sums stay within int32


class SymbolError(ValueError):
  """A symbol too far from its coding table, which happens with a broken checkpoint; one line."""


class CoderMissingError(ValueError):
  """The package of the range coder is not installed; one line."""


class Encoder:
  """A range encoder over one table; passes are appended to one stream."""

  def __init__(self, table: CodingTable):
    self._rows = _Rows(table)
    self._handle = _ops().create_range_encoder([], self._rows.lookup)

  def encode(self, symbols: np.ndarray, rows: np.ndarray) -> None:
    """Appends int32 symbols under the rows of the table, two arrays of one shape, in C order.

    SymbolError when a symbol lies further than 2**28 from its row.
    """
    symbols, rows = np.ravel(symbols), np.ravel(rows)
    cells = symbols.astype(np.int64) - self._rows.offset[rows]
    escape = self._rows.escape[rows]
    escaped = (cells < 0) | (cells >= escape)
    self._push(np.where(escaped, escape, cells), rows)
    if escaped.any():
      self._push_gamma(cells[escaped], escape[escaped])

  def encode_choices(self, choices: np.ndarray) -> None:
    """Appends the grids of a pass, 0 .. GRIDS - 1 (coding/portable.py)."""
    self._push(choices, self._rows.choice_row)

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
    self._handle = _ops().entropy_encode_index(self._handle, rows.astype(np.int32), cells.astype(np.int32))

  def finish(self) -> bytes:
    """The stream. The encoder is spent afterwards."""
    return _ops().entropy_encode_finalize(self._handle).numpy()


class Decoder:
  """A range decoder over the table that the encoder had."""

  def __init__(self, table: CodingTable, stream: bytes):
    self._rows = _Rows(table)
    self._handle = _ops().create_range_decoder(stream, self._rows.lookup)

  def decode(self, rows: np.ndarray) -> np.ndarray:
    """The int32 symbols of one pass, in the shape of `rows`. The wrong stream gives wrong symbols, not an error."""
    flat = np.ravel(rows)
    cells, escape = self._pull(flat), self._rows.escape[flat]
    escaped = cells == escape
    if escaped.any():
      cells[escaped] = self._pull_gamma(escape[escaped])
    return (cells + self._rows.offset[flat]).reshape(np.shape(rows))

  def decode_choices(self, count: int) -> np.ndarray:
    """(count,) int32, the grids of a pass; 0 .. GRIDS - 1 whatever the stream holds."""
    return self._pull(np.full(count, self._rows.choice_row))

  def _pull_gamma(self, escape):
    length = self._pull(np.full(escape.shape, self._rows.length_row))
    written = _written(length)
    bits = np.zeros(written.shape, np.int32)
    bits[written] = self._pull(np.full(written.sum(), self._rows.bit_row))
    distance = (bits[:, :-1] << np.arange(LENGTHS - 2, -1, -1)).sum(axis=1, dtype=np.int32) + (1 << length)
    return np.where(bits[:, -1] == 1, -distance, distance + escape - 1)

  def _pull(self, rows):
    ops, int32 = _ops(), np.int32
    self._handle, cells = ops.entropy_decode_index(self._handle, rows.astype(int32), rows.shape, Tdecoded=int32)
    return cells.numpy()

  def finish(self) -> None:
    """BitstreamError when the stream cannot have ended here. The check is a weak one, files carry a checksum."""
    if not _ops().entropy_decode_finalize(self._handle).numpy():
      raise BitstreamError("the coded data does not end where it should; it was made with another model or is damaged")


def _written(length: np.ndarray) -> np.ndarray:
  """(E, LENGTHS) bool, which of the bits of 2**27 .. 2**0 are written for a length; the last column is the sign."""
  below_leading_one = np.arange(LENGTHS - 2, -1, -1) < length[:, None]
  return np.concatenate([below_leading_one, np.ones((len(length), 1), bool)], axis=1)


class _Rows:
  """A table as the ops take it; behind its own rows, two of the gamma code, and that of the choices of grids."""

  def __init__(self, table: CodingTable):
    lengths = quantize_pmf(0.5**np.arange(1, LENGTHS + 1))
    gamma = [PRECISION, 0, *np.cumsum(lengths), 1, 0, 1, 2]
    choice = [PRECISION, 0, *np.cumsum(quantize_pmf(CHOICE_PMF))]
    self.lookup = np.concatenate([table.lookup, gamma, choice]).astype(np.int32)
    self.offset = table.offset
    sizes = np.diff(np.flatnonzero(table.lookup == 2**PRECISION), prepend=-1)
    self.escape = (sizes - 3).astype(np.int32)  # (rows,), the last cell; a row holds a precision and cells + 1 counts
    self.length_row, self.bit_row, self.choice_row = len(table.offset) + np.arange(3)


def load_in_background() -> None:
  """Begins to import the ops beside other work. What goes wrong is said by the first use."""
  ThreadPoolExecutor(1).submit(_ops)


@functools.cache
def _ops():
  """The ops. TensorFlow takes seconds to import, and would take the accelerator's memory if it saw it."""
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # jax sets 1, and TensorFlow still greets with four lines
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  try:
    with _without_keras():
      import tensorflow as tf
    tf.config.set_visible_devices([], "GPU")
    import tensorflow_compression_ops
  except ImportError as error:
    raise CoderMissingError(f"files want the range coder, tensorflow-compression-ops with TensorFlow 2.17: {error}; "
                            "see requirements.txt") from error
  return tensorflow_compression_ops


@contextlib.contextmanager
def _without_keras():
  """A quarter of TensorFlow's import is Keras, unless the old Keras is asked for, which is not there to be imported."""
  before = os.environ.get("TF_USE_LEGACY_KERAS")
  os.environ["TF_USE_LEGACY_KERAS"] = "1"
  try:
    yield
  finally:  # tf.keras looks again when it is first used
    if before is None:
      del os.environ["TF_USE_LEGACY_KERAS"]
    else:
      os.environ["TF_USE_LEGACY_KERAS"] = before
