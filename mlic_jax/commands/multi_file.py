"""Commands for many files: output names, a progress bar, and a list of failures at the end."""
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlic_jax.atomic_io import check_output
from mlic_jax.commands.exit_codes import Interruption
from mlic_jax.commands.stdio import check_stdio, is_stdio, is_stream
from mlic_jax.console import complain, rich_console, say
from mlic_jax.errors import for_the_user


class BatchError(ValueError):
  """The arguments or files cannot be processed together; raised before any work, with a message of one line."""


class OverwriteError(ValueError):
  """The output already exists; the message is one line with the option that replaces it."""


def pair_up(paths: Sequence[Path], out_dir: Path | None, suffix: str,
            list_folder: Callable[[Path], Sequence[Path]]) -> list[tuple[Path, Path]]:
  """Returns pairs of inputs and outputs.

  Args:
    paths: IN and OUT, each of which may be STDIO; with `out_dir` any number of files and folders, whose outputs are
      OUT_DIR/STEM + suffix.
    out_dir: the folder of the outputs; it is created if it is missing.
    suffix: the suffix of the outputs.
    list_folder: returns the files of a folder.

  BatchError for a wrong number of paths, two inputs with one output, or an output that is an input; OSError if the
  output cannot be written.
  """
  if out_dir is None:
    if len(paths) != 2:
      given = f"{len(paths)} path{'s' * (len(paths) != 1)}"
      raise BatchError(f"the command has {given}; wanted IN and OUT before --ckpt, or --out-dir with any "
                       "number of files and folders")
    source, target = paths
    check_stdio(source, target)
    if not is_stdio(target):
      check_output(target)
    _refuse_inputs([source], [target])
    return [(source, target)]
  if not paths:
    raise BatchError("the command has no paths; wanted files or folders before --ckpt and --out-dir")
  if any(map(is_stdio, paths)):
    raise BatchError("--out-dir names outputs after inputs, but - has no name; wanted files or folders, or IN and OUT")
  sources = [each for path in paths for each in (list_folder(path) if path.is_dir() else [path])]
  by_target: dict[Path, Path] = {}
  for source in sources:
    target = out_dir / f"{source.stem}{suffix}"
    if target in by_target:
      raise BatchError(f"{by_target[target]} and {source} would both become {target}")
    by_target[target] = source
  _refuse_inputs(sources, by_target)
  out_dir.mkdir(parents=True, exist_ok=True)
  return [(source, target) for target, source in by_target.items()]


def _refuse_inputs(sources: Sequence[Path], targets) -> None:
  """Raises BatchError for a target that is also a source, under any name. Devices are allowed."""
  read = {_identity(source): source for source in sources if not is_stream(source)}
  for target in targets:
    source = None if is_stream(target) else read.get(_identity(target))
    if source is not None and target.exists():
      name = target if source == target else f"{target}, the same file as {source},"
      raise BatchError(f"{name} is an input; wanted another file for the output")


def _identity(path: Path) -> tuple[int, int] | Path:
  """Returns a value that is the same for all names of a file."""
  try:
    status = path.stat()
  except OSError:                                        # reading reports a missing file
    return path
  return status.st_dev, status.st_ino


class FileProgress:
  """A progress bar over files on a terminal, which also shows latent optimization: completed fraction and loss."""

  def __init__(self):
    self._progress: Any = None   # rich.progress.Progress
    self._task: Any = None
    self._files, self._of_files = 0, True

  @contextlib.contextmanager
  def bar(self, title: str, total: int):
    """Shows the bar while the block runs."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
    console = rich_console(stderr=True)
    columns = *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal,
                  redirect_stdout=sys.stdout is not None and sys.stdout.isatty()) as self._progress:
      self._task, self._title = self._progress.add_task(title, total=total), title
      yield

  @contextlib.contextmanager
  def bar_of_tiles(self, title: str):
    """Shows a bar over the tiles of a single file within the context, after its first finished tile."""
    with contextlib.ExitStack() as self._tiles:
      self._tiles_title = title
      yield

  def advance_tile(self, done: int, total: int) -> None:
    """Counts the finished tiles of a file."""
    if self._progress is None:
      self._tiles.enter_context(self.bar(f"{self._tiles_title}, tiles", total))
      self._of_files = False
    if self._of_files:
      self._progress.update(self._task, description=f"{self._title}, tile {done} of {total}")
    else:
      self._progress.update(self._task, completed=done, total=total)

  def advance(self) -> None:
    """Counts a finished file."""
    self._files += 1
    self._progress.update(self._task, completed=self._files, description=self._title)

  def advance_file(self, done: float, loss: float) -> None:
    """Shows the completed fraction (0 to 1) of the latent optimization of a file, and its loss."""
    self._progress.update(self._task, completed=self._files + done, description=f"{self._title}, loss {loss:.4f}")


def run(pairs: Sequence[tuple[Path, Path]], work: Callable[[Path, Path], str], title: str,
        overwrite: bool = False, progress: FileProgress | None = None, left_out: Sequence[str] = ()) -> int:
  """Calls work(source, target) for each pair and prints the line that it returns; returns the exit status.

  A user error (errors.py) in one file does not stop the others; stderr lists all of them at the end. An existing target
  is such an error unless `overwrite` is True. The lines of `left_out`, about files without a pair, are listed as well.
  The exit status is 0, 1 if any file failed or was left out, or 128 + N after signal N.
  """
  progress, failures, done = progress or FileProgress(), list[str](), 0
  stop: Interruption | None = None
  try:
    with progress.bar(title, len(pairs)):
      for source, target in pairs:
        try:
          if not overwrite and os.path.lexists(target):
            raise OverwriteError(f"{target} already exists; --overwrite replaces it")
          line = work(source, target)
        except (OSError, ValueError) as error:
          problem = for_the_user(error)
          if problem is None:
            raise
          failures.append(problem if str(source) in problem else f"{source}: {problem}")
        else:
          done += 1
          say(line)
        progress.advance()
  except KeyboardInterrupt as error:
    stop = Interruption.of(error)
  if failures:
    complain(f"error: {len(failures)} of {len(pairs)} files failed:", *(f"  {each}" for each in failures))
  for line in left_out:
    complain(f"error: {line}")
  if stop:
    complain(f"{stop.word}: wrote {done} of {len(pairs)} files")
    return stop.status
  return 1 if failures or left_out else 0
