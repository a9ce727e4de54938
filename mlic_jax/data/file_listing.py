"""The files in a folder and below."""
import os
from collections.abc import Callable
from pathlib import Path

from mlic_jax.paths import as_path, files_below, is_remote

# An evaluation writes it to its folder, beside plots and pictures that are no photographs: see below.
MEASUREMENTS = "measurements.jsonl"


def list_files(folder: str | os.PathLike, wanted: Callable[[str], bool]) -> list[Path]:
  """The files in `folder` and below whose names are `wanted`, sorted.

  Links are followed; a folder that is reached in several ways counts once, by its own place before that of a link.
  What is hidden is left out, and so are folders that an evaluation wrote, below `folder`. OSError for a folder that
  cannot be read: what is in it would be missing without a word.
  """
  if is_remote(folder):
    return sorted(path for path in files_below(as_path(folder))
                  if wanted(path.name) and not path.name.startswith("."))
  found: list[Path] = []
  seen: set[tuple[int, int]] = set()
  folders, links = [Path(folder)], list[Path]()
  while folders or links:
    if not folders:
      links.sort(reverse=True)
      folders.append(links.pop())
    here = folders.pop()
    status = here.stat()
    if (status.st_dev, status.st_ino) in seen:
      continue
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(here) as scanned:
      entries = [entry for entry in scanned if not entry.name.startswith(".")]
    if here != Path(folder) and any(entry.name == MEASUREMENTS for entry in entries):
      continue
    for entry in entries:
      if entry.is_dir(follow_symlinks=False):
        folders.append(here / entry.name)
      elif entry.is_symlink() and os.path.isdir(entry):
        links.append(here / entry.name)
      elif wanted(entry.name) and (entry.is_file(follow_symlinks=False) or os.path.isfile(entry)):
        found.append(here / entry.name)
  return sorted(found)
