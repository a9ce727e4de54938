"""Output of the commands to stdout and stderr, for any file name and for closed streams."""
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

WIDTH_MIN = 20                            # minimum of columns for a table
_STREAMS = ("stdin", "stdout", "stderr")  # by their file descriptors
_closed: set[str] = set()                 # streams that were closed when this process started
_lost_output = False                      # whether a write to stdout failed, as on a full disk


def prepare() -> None:
  """Set up the streams for any file name, and silence warnings of libraries. Every command calls it first."""
  _open_closed_streams()
  for stream in sys.stdout, sys.stderr:
    if hasattr(stream, "reconfigure"):                  # the streams of notebooks have no such method
      stream.reconfigure(errors="backslashreplace")
  warnings.filterwarnings("ignore", module=r"PIL\.")    # about metadata of images that can be read
  for library in "PIL", "matplotlib":                   # its settings files are not used (matplotlib_settings.py)
    logging.getLogger(library).addHandler(logging.NullHandler())


def _open_closed_streams() -> None:
  """Open the null device for streams that are closed, as under cron and some service managers.

  Otherwise a file that is opened later has the file descriptor of stdout or stderr, and output is written into it.
  """
  for number, name in enumerate(_STREAMS):
    if getattr(sys, name) is not None:
      continue
    _closed.add(name)
    mode = "r" if name == "stdin" else "w"
    with contextlib.suppress(OSError):                  # without a null device nothing changes
      try:
        os.fstat(number)
      except OSError:
        null = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        os.dup2(null, number)                           # dup2 also lets child processes inherit it
        if null != number:
          os.close(null)
      setattr(sys, name, open(os.devnull, mode))


def was_closed(name: str) -> bool:
  """Return whether "stdin", "stdout" or "stderr" was closed when this process started."""
  return name in _closed


def has_lost_output() -> bool:
  """Return whether a write to stdout has failed in this process, for another reason than a closed pipe."""
  return _lost_output


def printable(text: str) -> str:
  """Return `text` in one line of printable characters: "\\\\n" for a new line, "\\\\udce9" for a byte 0xe9."""
  return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def say(line: str) -> None:
  """Print a line to stdout. If the pipe is closed (`| head -1`), the program continues without output.

  If the write fails, as on a full disk, stderr reports it once, and the program continues."""
  with _ignoring_failed_writes():
    print(printable(line), flush=True)


def show(*renderables: Any, width: int | None = None) -> None:
  """Print tables of rich and wrapped text to stdout. Failed writes are handled as in `say`."""
  with _ignoring_failed_writes():
    rich_console(width=width).print(*renderables, sep="\n")


@contextlib.contextmanager
def _ignoring_failed_writes() -> Iterator[None]:
  """Context manager around a write to stdout, which discards stdout and its buffer if the write fails."""
  global _lost_output
  try:
    yield
  except BrokenPipeError:
    _discard_stdout()
  except OSError as error:
    _lost_output = True
    complain(f"error: stdout: {error.strerror}")
    _discard_stdout()


def complain(*lines: str) -> None:
  """Print lines to stderr; failed writes are ignored."""
  with contextlib.suppress(OSError):
    print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)


def rich_console(**options):
  """Return a console of rich without markup and emoji, so that file names are printed as they are."""
  from rich.console import Console

  class QuietConsole(Console):
    def on_broken_pipe(self):                            # rich's method ends the program
      self.quiet = True
      if not self.stderr:
        _discard_stdout()

  console = QuietConsole(markup=False, emoji=False, highlight=False, **options)
  if console.width < WIDTH_MIN:                          # COLUMNS=0, and terminals of unknown size
    console.width = 80
  return console


def _discard_stdout() -> None:
  """Redirect stdout to the null device."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
