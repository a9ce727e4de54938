"""One command for many files: what is written for each, a progress bar, and at the end a list of what failed."""
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mlic_jax.errors import for_the_user


class BatchError(ValueError):
  """Files that cannot be worked on together; one line, before anything is done."""


def pair_up(paths: Sequence[Path], out_dir: Path | None, suffix: str,
            list_folder: Callable[[Path], Sequence[Path]]) -> list[tuple[Path, Path]]:
  """What is read and what is written for it.

  Args:
    paths: IN and OUT; with `out_dir` any number of files and folders, whose names OUT_DIR/STEM + suffix are made of.
    out_dir: made if it is missing.
    list_folder: the files of a folder.

  BatchError when the number is another, or two files would become one; OSError when nothing can be written there.
  """
  if out_dir is None:
    if len(paths) != 2:
      raise BatchError(f"{len(paths)} paths came; IN and OUT are wanted before --ckpt, or --out-dir and any number of "
                       "files and folders")
    source, target = paths
    if not target.parent.is_dir():
      raise FileNotFoundError(2, os.strerror(2), str(target))
    return [(source, target)]
  if not paths:
    raise BatchError("no path came; files or folders are wanted, before --ckpt and --out-dir")
  sources = [each for path in paths for each in (list_folder(path) if path.is_dir() else [path])]
  by_target = {}
  for source in sources:
    target = out_dir / f"{source.stem}{suffix}"
    if target in by_target:
      raise BatchError(f"{by_target[target]} and {source} would both become {target}")
    by_target[target] = source
  out_dir.mkdir(parents=True, exist_ok=True)
  return [(source, target) for target, source in by_target.items()]


def run(pairs: Sequence[tuple[Path, Path]], work: Callable[[Path, Path], str], title: str) -> int:
  """Calls work(source, target) for each, and prints the line that it returns.

  What goes wrong with one file (see errors.py) does not stop the others and is listed on stderr at the end.

  Returns:
    The exit status: 0, or 1 when any failed.
  """
  from rich.console import Console
  from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
  console, failures = Console(stderr=True), []
  columns = *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()
  with Progress(*columns, console=console, transient=True, disable=not console.is_terminal,
                redirect_stdout=sys.stdout.isatty()) as progress:
    for source, target in progress.track(pairs, description=title):
      try:
        print(work(source, target), flush=True)
      except (OSError, ValueError) as error:
        line = for_the_user(error)
        if line is None:
          raise
        failures.append(line if str(source) in line else f"{source}: {line}")
  if failures:
    print(f"error: {len(failures)} of {len(pairs)} files failed:", *failures, sep="\n  ", file=sys.stderr)
  return 1 if failures else 0
