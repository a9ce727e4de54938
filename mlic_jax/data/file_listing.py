"""Lists of the files in a folder and its subfolders, and of the files that were left out."""
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlic_jax.console import printable
from mlic_jax.paths import as_path, files_below, is_remote

# File in the folders of evaluations. Such folders have plots and images that are no data, and are skipped.
MEASUREMENTS = "measurements.jsonl"
BROKEN_LINK, NO_FILE = "broken links", "pipes, sockets or devices"
NAMES_SHOWN = 3


class Listing(NamedTuple):
  """Files of a folder, and files that were left out."""
  files: list[Path]
  left_out: dict[str, list[str]]   # reason -> names below the folder

  def summary(self) -> str:
    """Return a summary of left-out files, such as "3 files (broken links: a, b; .gif: c.gif)", or ""."""
    if not self.left_out:
      return ""
    count = sum(map(len, self.left_out.values()))
    return f"{count} file{'s' * (count > 1)} ({'; '.join(map(_named, *zip(*sorted(self.left_out.items()))))})"


def list_files(folder: str | os.PathLike, wanted: Callable[[str], bool | str]) -> Listing:
  """Return the sorted files in `folder` and its subfolders whose names are `wanted`.

  Links are followed. A folder that is reached in several ways is listed once, preferably by its own path. Hidden files
  and results folders of evaluations are skipped.

  Args:
    folder: local or remote.
    wanted: function of a file name; returns whether the file is wanted, or the reason why it is left out.

  Broken links, and pipes and devices of wanted names, are in the list of left-out files. OSError if a folder cannot be
  read, because its files would be missing silently.
  """
  files, left_out = [], dict[str, list[str]]()

  def consider(path: Path, name: str, reason: str = "") -> None:
    answer = wanted(path.name)
    if reason == BROKEN_LINK or isinstance(answer, str) or answer and reason:
      left_out.setdefault(reason or str(answer), []).append(name)
    elif answer:
      files.append(path)

  if is_remote(folder):
    for path in files_below(as_path(folder)):
      if not path.name.startswith("."):
        consider(path, path.name)
    return Listing(sorted(files), left_out)

  seen, folders, links = set(), [Path(folder)], list[Path]()
  while folders or links:
    if not folders:
      links.sort(reverse=True)
      folders.append(links.pop())
    here = folders.pop()
    status = here.stat()
    if (status.st_dev, status.st_ino) in seen:
      continue
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(here) as found:
      entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    if here != Path(folder) and any(entry.name == MEASUREMENTS for entry in entries):
      continue
    for entry in entries:
      path = here / entry.name
      name = path.relative_to(folder).as_posix()
      if entry.is_dir(follow_symlinks=False):
        folders.append(path)
      elif entry.is_file(follow_symlinks=False):         # needs no system call on most file systems
        consider(path, name)
      else:
        try:
          mode = os.stat(path).st_mode
        except OSError:                                  # a missing target, a cycle, or no permission
          consider(path, name, BROKEN_LINK)
          continue
        if stat.S_ISDIR(mode):
          links.append(path)
        else:
          consider(path, name, "" if stat.S_ISREG(mode) else NO_FILE)
  return Listing(sorted(files), left_out)


def _named(reason: str, names: list[str]) -> str:
  shown = ", ".join(map(printable, sorted(names)[:NAMES_SHOWN]))
  return f"{reason}: {shown}{f' and {len(names) - NAMES_SHOWN} more' if len(names) > NAMES_SHOWN else ''}"
