"""Cached files that run code when they are loaded: machine code and pickles.

Such a file is used only if it belongs to the user and no other user can write to it. Otherwise it counts as missing.
"""
import contextlib
import glob
import os
import stat

from mlic_jax.atomic_io import whole_file

FOREIGN, WRITABLE = "belongs to another user", "can be written to by other users"


def distrust(status: os.stat_result) -> str | None:
  """Return the reason not to trust a file or folder; None if it is trusted."""
  if not hasattr(os, "geteuid"):                 # Windows, where other users cannot enter the folders of a user
    return None
  if status.st_uid != os.geteuid():
    return FOREIGN
  return WRITABLE if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def read_trusted(path: str) -> bytes | None:
  """Return the content of a file; None unless it is readable and trusted."""
  with contextlib.suppress(OSError), open(path, "rb") as file:
    if not distrust(os.fstat(file.fileno())):    # of the open file, because the path may point to another file now
      return file.read()
  return None


def write_trusted(path: str, content: bytes) -> None:
  """Write a file atomically, with a mode that `read_trusted` accepts for any umask."""
  with contextlib.suppress(FileNotFoundError):
    os.unlink(path)                              # whole_file keeps the mode of the file that it replaces
  with whole_file(path) as partial:
    partial.touch(mode=0o600)
    partial.write_bytes(content)


def matching(folder: str, pattern: str) -> list[str]:
  """Return the sorted paths of files in `folder` whose relative paths match `pattern`."""
  return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


def remove_matching(folder: str, pattern: str) -> None:
  """Remove `matching(folder, pattern)`. Another process may remove them at the same time."""
  for path in matching(folder, pattern):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(path)


def evict(folder: str, max_bytes: int) -> None:
  """Remove the least recently used files above `max_bytes` in total, and dangling links."""
  links = [each.path for each in os.scandir(folder) if each.is_symlink()]
  files, total = [(each.stat(), each.path) for each in os.scandir(folder) if not each.is_symlink()], 0
  for status, path in sorted(files, key=lambda each: each[0].st_mtime, reverse=True):
    total += status.st_size
    if total > max_bytes:
      os.unlink(path)
  for path in links:
    if not os.path.exists(path):
      os.unlink(path)
