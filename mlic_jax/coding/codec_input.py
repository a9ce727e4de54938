"""Converts and checks arguments of Codec: files and numbers of slices."""
import io
import numbers
import os
from typing import IO, Any, cast

from mlic_jax.coding.bitstream import Bitstream, BitstreamError

Buffer = bytes | bytearray | memoryview


def as_bytes(blob: Buffer) -> bytes:
  """Converts a buffer to bytes. BitstreamError for other types, such as the path of a file."""
  if isinstance(blob, bytes):
    return blob
  try:
    return memoryview(blob).tobytes()
  except TypeError:
    hint = "; read a file with Path(path).read_bytes()" if isinstance(blob, str | os.PathLike) else ""
    raise BitstreamError(f"the input is {type(blob).__name__}; wanted the bytes of a .mlic file{hint}") from None


def opened(source: Buffer | IO[bytes]) -> IO[bytes]:
  """Returns a buffer or an open file as a file at position 0. BitstreamError for other types."""
  file: Any = source if isinstance(source, io.IOBase) else io.BytesIO(as_bytes(cast(Buffer, source)))
  file.seek(0)
  return file


def check_slices(slices: int | None, content: Bitstream) -> None:
  """Raises BitstreamError for a number of slices that a file does not have."""
  given: object = slices  # of any type, for the type checker
  if slices is not None and not (isinstance(given, numbers.Integral) and 0 <= slices <= content.num_slices):
    raise BitstreamError(f"slices={slices!r}; wanted an integer from 0 to {content.num_slices}")
