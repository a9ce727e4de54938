"""Atomic writes: files appear complete or not at all."""
import contextlib
import errno
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlic_jax.paths import as_path, is_remote

_numbers = itertools.count()


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
  """Context manager with a temporary path, whose file replaces the local `path` after the block.

  If the block raises, the file is removed. Links are followed. Pipes and devices are written to after the block. Errors
  name `path`.
  """
  path = Path(path)
  with naming(path):
    old = _status(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
      with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / "whole"
        with naming(path, partial):
          yield partial
        with partial.open("rb") as content, path.open("wb", buffering=0) as stream:
          shutil.copyfileobj(content, stream)
      return
    target = Path(os.path.realpath(path))
    # Not derived from the name, which may have the maximal length already.
    partial = target.with_name(f".{os.getpid()}-{next(_numbers)}.partial")
    try:
      with naming(path, partial):
        yield partial
        if old is not None:
          partial.chmod(stat.S_IMODE(old.st_mode))    # the mode of the old file stays
        os.replace(partial, target)
    finally:
      partial.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
  """Write a file atomically. A remote file appears when it is closed; pipes and devices are written to."""
  content = content.encode() if isinstance(content, str) else content
  if is_remote(path):
    as_path(path).write_bytes(content)
    return
  with whole_file(path) as partial:
    partial.write_bytes(content)


def check_output(path: str | os.PathLike) -> None:
  """Raise an OSError if `path` is a folder, has too long a name, or lies in a folder that does not exist."""
  path = Path(path)
  with naming(path):
    old = _status(path)
    if old is not None and stat.S_ISDIR(old.st_mode):
      raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if old is None and not Path(os.path.realpath(path)).parent.is_dir():
      raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def is_special(path: str | os.PathLike) -> bool:
  """Return whether `path` exists and is neither a file nor a folder, such as a pipe, a device or a socket."""
  try:
    mode = os.stat(path).st_mode
  except OSError:                                     # missing or not accessible; opening it will report that
    return False
  return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def naming(path: Path, *instead_of: Path) -> Iterator[None]:
  """Context manager in which OSErrors without a file name, or with one of `instead_of`, name `path`."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and (error.filename is None or error.filename in [str(each) for each in instead_of]):
      raise OSError(error.errno, error.strerror, str(path)) from error
    raise


def _status(path: Path) -> os.stat_result | None:
  """Return the status of the target of a link; None if it does not exist."""
  try:
    return os.stat(path)
  except FileNotFoundError:
    return None
