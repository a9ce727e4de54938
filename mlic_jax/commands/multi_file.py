"""Commands on many files: names of the outputs, a progress bar, and a list of failures at the end."""
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
  """Arguments or files that cannot be processed together; one line, before anything is done."""


class OverwriteError(ValueError):
  """An output that already exists; one line with the option that replaces it."""


def pair_up(paths: Sequence[Path], out_dir: Path | None, suffix: str,
            list_folder: Callable[[Path], Sequence[Path]]) -> list[tuple[Path, Path]]:
  """Pairs of inputs and outputs.

  Args:
    paths: IN and OUT, each of which may be STDIO; with `out_dir` any number of files and folders, whose outputs are
      OUT_DIR/STEM + suffix.
    out_dir: is made if it is missing.
    suffix: of the outputs.
    list_folder: returns the files of a folder.

  BatchError for a wrong number of paths, two inputs with one output, and an output that is an input; OSError where
  nothing can be written.
  """
  if out_dir is None:
    if len(paths) != 2:
      raise BatchError(f"{len(paths)} paths came; IN and OUT are wanted before --ckpt, or --out-dir and any number of "
                       "files and folders")
    source, target = paths
    check_stdio(source, target)
    if not is_stdio(target):
      check_output(target)
    _refuse_inputs([source], [target])
    return [(source, target)]
  if not paths:
    raise BatchError("no path came; files or folders are wanted, before --ckpt and --out-dir")
  if any(map(is_stdio, paths)):
    raise BatchError("- came with --out-dir, but stdin has no name for an output; wanted files or folders, or "
                     "IN and OUT")
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
  """Raises BatchError for a target that is also a source, under any name; devices are no files."""
  read = {_identity(source): source for source in sources if not is_stream(source)}
  for target in targets:
    source = None if is_stream(target) else read.get(_identity(target))
    if source is not None and target.exists():
      came = f"{target} is" if source == target else f"{target} is {source}, which is"
      raise BatchError(f"{came} read; wanted another file to write")


def _identity(path: Path) -> tuple[int, int] | Path:
  """A value that is the same for all names of a file."""
  try:
    status = path.stat()
  except OSError:                                        # missing, which is reported when it is read
    return path
  return status.st_dev, status.st_ino


class FileProgress:
  """A progress bar of files on a terminal, with the share and the loss of a file whose latents are optimized."""

  def __init__(self):
    self._progress: Any = None   # of rich
    self._task: Any = None
    self._files = 0

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

  def advance(self) -> None:
    """Counts a finished file."""
    self._files += 1
    self._progress.update(self._task, completed=self._files, description=self._title)

  def advance_file(self, done: float, loss: float) -> None:
    """Shows the share (0 to 1) of the optimization of a file that is done, and its loss."""
    self._progress.update(self._task, completed=self._files + done, description=f"{self._title}, loss {loss:.4f}")


def run(pairs: Sequence[tuple[Path, Path]], work: Callable[[Path, Path], str], title: str,
        overwrite: bool = False, progress: FileProgress | None = None, left_out: Sequence[str] = ()) -> int:
  """Calls work(source, target) for each pair, and prints the line that it returns.

  A user error (see errors.py) in one file does not stop the others and is listed on stderr at the end; so is a target
  that already exists, unless `overwrite`, and so are the lines of `left_out`, about files that are not among the pairs.

  Returns:
    The exit status: 0, or 1 when any failed or was left out; 128 + N after signal N.
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
    complain(f"{stop.word}: {done} of {len(pairs)} files are written")
    return stop.status
  return 1 if failures or left_out else 0
