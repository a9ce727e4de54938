"""The range coder of TensorFlow Compression, compiled by numba: the same bytes without TensorFlow.

The stream is a number between 0 and 1 in base 2**16, found by narrowing an interval (Martin, "Range encoding", 1979):

    [base, base + size)     32-bit interval, base < 2**32, 2**16 <= size <= 2**32, initially [0, 2**32)
    a symbol                narrows it to [base + (size * low >> precision), base + (size * high >> precision)),
                            where low and high are the cumulative counts of its row before and after it
    size <= 2**16           writes the leading 16 bits of base and stretches the interval by 2**16

The end of the interval may lie beyond 2**32. The last written digits are then either right or one too small, and a
carry corrects them once base passes 2**32. (The ops delay these digits until they are known; the digits are the same.)
All numbers are int64: the largest is size * count, 2**48.
"""
import numpy as np

from mlic_jax.runtime.machine_code import machine_code

MASK = 2**32 - 1


class Writer:
  """Appends symbols to one stream.

  lookup: (L,) int32, concatenated rows: the precision, then cumulative counts from 0 to 2**precision.
  starts: (rows + 1,) int64, the index of the start of each row, and L.
  """

  def __init__(self, lookup: np.ndarray, starts: np.ndarray):
    self._table = lookup, starts
    self._state = np.array([0, 2**32, 0])        # base, size, bytes written
    self._sink = np.empty(256, np.uint8)

  def push(self, rows: np.ndarray, cells: np.ndarray) -> None:
    """Appends the cells 0, 1, ... of the given rows; both are (n,) int32, contiguous and within the table."""
    self._reserve(rows.size)
    _push(self._state, self._sink, *self._table, rows, cells, rows.size)

  def push_elements(self, lookup: np.ndarray, starts: np.ndarray, cells: np.ndarray) -> None:
    """Appends the cells (n,) int32 of the n rows of another table, in their order."""
    self._reserve(cells.size)
    _push(self._state, self._sink, lookup, starts, np.arange(cells.size, dtype=np.int32), cells, cells.size)

  def _reserve(self, symbols: int) -> None:
    length = int(self._state[2])
    needed = length + 2 * symbols                # a symbol writes at most two bytes
    if needed > self._sink.size:
      sink = np.empty(2 * needed, np.uint8)
      sink[:length] = self._sink[:length]
      self._sink = sink

  def finish(self) -> bytes:
    """Returns the stream. It ends with the shortest number in the interval, without trailing zeros."""
    base, size, length = map(int, self._state)
    written = self._sink[:length].tobytes()
    if base + size > 2**32:                      # the interval contains 2**32: a carry, then zeros
      written = written.rstrip(b"\xff")
      return written[:-1] + bytes([written[-1] + 1])
    if base == 0:
      return written
    digits = next(n for n in (1, 2) if _round_up(base, n) < base + size)
    return written + _round_up(base, digits).to_bytes(4, "big")[:digits]


class Reader:
  """Reads symbols from one stream, with the table of its writer. Zeros follow the end of the stream.

  Any bytes decode to symbols: the number stays in the interval, whatever bytes follow.
  """

  def __init__(self, stream: bytes, lookup: np.ndarray, starts: np.ndarray):
    self._table = lookup, starts
    self._stream = np.frombuffer(stream, np.uint8)
    value = int.from_bytes(stream[:4].ljust(4, b"\0"), "big")
    self._state = np.array([0, 2**32, value, min(4, len(stream))])  # base, size, number - base, bytes read

  def pull(self, rows: np.ndarray) -> np.ndarray:
    """Returns the next cells, (n,) int32; `rows` (n,) int32 is contiguous and within the table."""
    cells = np.empty(rows.size, np.int32)
    _pull(self._state, self._stream, *self._table, rows, cells, self._stream.size, rows.size)
    return cells

  def pull_elements(self, lookup: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the next n cells, (n,) int32, each with its own row of another table of n rows."""
    rows = np.arange(starts.size - 1, dtype=np.int32)
    cells = np.empty(rows.size, np.int32)
    _pull(self._state, self._stream, lookup, starts, rows, cells, self._stream.size, rows.size)
    return cells

  def finish(self) -> bool:
    """Whether a writer can have ended the stream here: all bytes are read, and they are those that `finish` writes."""
    base, size, value, position = map(int, self._state)
    if position < self._stream.size:
      return False
    if base == 0 or base + size > 2**32:
      return base + value & MASK == 0
    end = _round_up(base, 1)
    return base + value == (end if end < base + size else _round_up(base, 2))


def _round_up(base: int, digits: int) -> int:
  """Returns the smallest number >= base whose bytes after the first `digits` are zero."""
  unit = 2**(32 - 8 * digits)
  return -(-base // unit) * unit


@machine_code(("int64", "uint8", "int32", "int64", "int32", "int32"), lengths=1)
def _push(state, sink, lookup, starts, rows, cells, num_rows):
  base, size, length = state[0], state[1], state[2]
  for i in range(num_rows):
    start = starts[rows[i]]
    precision = lookup[start]
    low = size * lookup[start + 1 + cells[i]] >> precision
    size = (size * lookup[start + 2 + cells[i]] >> precision) - low
    base += low
    if base > MASK:
      base &= MASK
      carry = length - 1
      while sink[carry] == 255:
        sink[carry] = 0
        carry -= 1
      sink[carry] += 1
    if size <= 2**16:
      sink[length], sink[length + 1] = base >> 24, base >> 16 & 255
      length += 2
      base = base << 16 & MASK
      size <<= 16
  state[0], state[1], state[2] = base, size, length


@machine_code(("int64", "uint8", "int32", "int64", "int32", "int32"), lengths=2)
def _pull(state, stream, lookup, starts, rows, cells, num_bytes, num_rows):
  base, size, value, position = state[0], state[1], state[2], state[3]
  for i in range(num_rows):
    start, last = starts[rows[i]], starts[rows[i] + 1] - 1
    precision = lookup[start]
    first = start + 2                            # binary search for the first count whose share of size exceeds value
    while first < last:
      middle = first + last >> 1
      if size * lookup[middle] >> precision > value:
        last = middle
      else:
        first = middle + 1
    cells[i] = first - start - 2
    low = size * lookup[first - 1] >> precision
    size = (size * lookup[first] >> precision) - low
    base += low
    value -= low
    if size <= 2**16:
      base <<= 16
      size <<= 16
      value <<= 16
      for shift in (8, 0):
        if position < num_bytes:
          value |= np.int64(stream[position]) << shift
          position += 1
    base &= MASK
  state[0], state[1], state[2], state[3] = base, size, value, position
