"""Cached files that run code when they are loaded: machine code and pickles.

Such a file counts only if nobody but the user can have written it: it belongs to the user, and other users may not
write to it. Otherwise it is treated as missing.
"""
import contextlib
import glob
import hashlib
import os
import stat
from collections.abc import Iterator

from mlic_jax.atomic_io import whole_file

FOREIGN, WRITABLE = "belongs to another user", "can be written to by other users"
CHECKSUM = "sha256"  # the file with the checksum of the others


def distrust(status: os.stat_result) -> str | None:
  """The reason not to trust a file or folder; None where it can be trusted."""
  if not hasattr(os, "geteuid"):                 # Windows, where the folders of a user are closed to others
    return None
  if status.st_uid != os.geteuid():
    return FOREIGN
  return WRITABLE if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def read_trusted(path: str) -> bytes | None:
  """The content of a file; None unless it can be read and trusted."""
  with contextlib.suppress(OSError), open(path, "rb") as file:
    if not distrust(os.fstat(file.fileno())):    # of the file that is open: the name may lead elsewhere by now
      return file.read()
  return None


def write_trusted(path: str, content: bytes) -> None:
  """Writes a file, whole or not at all, which `read_trusted` reads whatever the umask is."""
  with contextlib.suppress(FileNotFoundError):
    os.unlink(path)                              # whole_file keeps the mode of the file that it replaces
  with whole_file(path) as partial:
    partial.touch(mode=0o600)
    partial.write_bytes(content)


@contextlib.contextmanager
def checksummed(folder: str, pattern: str) -> Iterator[None]:
  """Around the use of the files `pattern` in `folder` by a library that loads them without a check of its own.

  Before, they are removed unless they are trusted and the same, byte for byte, as after the last use. They are also
  removed when the block raises. OSError for a folder that cannot be written to.
  """
  record = os.path.join(folder, CHECKSUM)
  if _recorded(record) != _checksum(folder, pattern):
    remove_matching(folder, pattern)
  try:
    yield
  except Exception:
    remove_matching(folder, pattern)
    raise
  for path in matching(folder, pattern):
    os.chmod(path, 0o600)                        # the library leaves it to the umask
  checksum = _checksum(folder, pattern)
  if checksum and checksum != _recorded(record):
    write_trusted(record, checksum.encode())


def matching(folder: str, pattern: str) -> list[str]:
  """The files in `folder` whose paths below it match `pattern`, sorted."""
  return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


def remove_matching(folder: str, pattern: str) -> None:
  """Removes `matching(folder, pattern)`; another process may do the same."""
  for path in matching(folder, pattern):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(path)


def _recorded(path: str) -> str | None:
  content = read_trusted(path)
  return None if content is None else content.decode("ascii", errors="replace")


def _checksum(folder: str, pattern: str) -> str | None:
  """Of names and contents; None unless there are such files and all of them can be trusted."""
  digest, paths = hashlib.sha256(), matching(folder, pattern)
  for path in paths:
    content = read_trusted(path)
    if content is None:
      return None
    digest.update(f"{os.path.relpath(path, folder)}\0{len(content)}\0".encode(errors="surrogateescape") + content)
  return digest.hexdigest() if paths else None
