"""Files that appear whole or not at all, whatever they are called."""
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
  """A name to write to: what is there becomes the local `path` when the block ends well, and is removed otherwise.

  A link is followed, and stays. What is no file (a pipe, a device) is written to, at the end, and stays what it is.
  Errors name `path`.
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
    # Not made of the name, which may be as long as a name can be.
    partial = target.with_name(f".{os.getpid()}-{next(_numbers)}.partial")
    try:
      with naming(path, partial):
        yield partial
        if old is not None:
          partial.chmod(stat.S_IMODE(old.st_mode))    # who may read it does not change by writing it again
        os.replace(partial, target)
    finally:
      partial.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a file, whole or not at all; a remote one appears when it is closed, a pipe or a device is written to."""
  content = content.encode() if isinstance(content, str) else content
  if is_remote(path):
    as_path(path).write_bytes(content)
    return
  with whole_file(path) as partial:
    partial.write_bytes(content)


def check_output(path: str | os.PathLike) -> None:
  """OSError, before the work, for a folder, a name that is too long, and a file in a folder that is not there."""
  path = Path(path)
  with naming(path):
    old = _status(path)
    if old is not None and stat.S_ISDIR(old.st_mode):
      raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if old is None and not Path(os.path.realpath(path)).parent.is_dir():
      raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def is_special(path: str | os.PathLike) -> bool:
  """Whether it is there, and neither a file nor a folder: a pipe, a device, a socket."""
  try:
    mode = os.stat(path).st_mode
  except OSError:                                     # not there, or not to be looked at: who opens it will say so
    return False
  return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def naming(path: Path, *instead_of: Path) -> Iterator[None]:
  """OSErrors that name no file, or one that the user does not know, name `path`."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and (error.filename is None or error.filename in [str(each) for each in instead_of]):
      raise OSError(error.errno, error.strerror, str(path)) from error
    raise


def _status(path: Path) -> os.stat_result | None:
  """Of what a link leads to; None when there is nothing."""
  try:
    return os.stat(path)
  except FileNotFoundError:
    return None
