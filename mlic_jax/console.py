"""Output of the commands to stdout and stderr: any name can be printed, and no command ends because nobody reads."""
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

WIDTH_MIN = 20                            # columns of a terminal that can show a table
_STREAMS = ("stdin", "stdout", "stderr")  # by their file descriptors
_closed: set[str] = set()                 # of _STREAMS, when this process was started
_lost_output = False                      # a line for stdout could not be written, as on a full disk


def prepare() -> None:
  """Called by every command first: output may contain any file name, and libraries add no lines to it."""
  _open_closed_streams()
  for stream in sys.stdout, sys.stderr:
    if hasattr(stream, "reconfigure"):                  # not what stands in for a terminal in notebooks
      stream.reconfigure(errors="backslashreplace")
  warnings.filterwarnings("ignore", module=r"PIL\.")    # about metadata of images that are read all the same
  for library in "PIL", "matplotlib":                   # whose settings files are not used (matplotlib_settings.py)
    logging.getLogger(library).addHandler(logging.NullHandler())


def _open_closed_streams() -> None:
  """Opens the null device in the place of closed streams, as cron and some service managers leave them.

  Otherwise a file that is opened later would have the number of stdout or stderr, and what is printed would go into it.
  """
  for number, name in enumerate(_STREAMS):
    if getattr(sys, name) is not None:
      continue
    _closed.add(name)
    mode = "r" if name == "stdin" else "w"
    with contextlib.suppress(OSError):                  # where even the null device is missing, all stays as it is
      try:
        os.fstat(number)
      except OSError:
        null = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        os.dup2(null, number)                           # dup2 also lets child processes inherit it
        if null != number:
          os.close(null)
      setattr(sys, name, open(os.devnull, mode))


def was_closed(name: str) -> bool:
  """Whether "stdin", "stdout" or "stderr" was closed when this process was started."""
  return name in _closed


def has_lost_output() -> bool:
  """Whether `say` failed to write a line for another reason than a reader that went, since the process began."""
  return _lost_output


def printable(text: str) -> str:
  """One line that any terminal and any text file can hold: "\\\\n" for a new line, "\\\\udce9" for a byte 0xe9."""
  return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def say(line: str) -> None:
  """Prints a line to stdout. When the reader has gone (`| head -1`), the work goes on without it.

  When the line cannot be written, as on a full disk, stderr says so once, and the work goes on, too."""
  with _going_on_without_stdout():
    print(printable(line), flush=True)


def show(*renderables: Any, width: int | None = None) -> None:
  """Prints tables of rich, and lines of text that may be wrapped, to stdout; like `say` where that fails."""
  with _going_on_without_stdout():
    rich_console(width=width).print(*renderables, sep="\n")


@contextlib.contextmanager
def _going_on_without_stdout() -> Iterator[None]:
  """Around a write to stdout: discards stdout when it fails, with what is still in its buffer."""
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
  """Prints lines to stderr, if they can be written."""
  with contextlib.suppress(OSError):
    print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)


def rich_console(**options):
  """A console of rich for names from users: no "[...]" in them is markup, and no ":...:" an emoji."""
  from rich.console import Console

  class QuietConsole(Console):
    def on_broken_pipe(self):                            # rich's own ends the program
      self.quiet = True
      if not self.stderr:
        _discard_stdout()

  console = QuietConsole(markup=False, emoji=False, highlight=False, **options)
  if console.width < WIDTH_MIN:                          # COLUMNS=0, and terminals that do not know their size
    console.width = 80
  return console


def _discard_stdout() -> None:
  """Sends what is written to stdout from now on to the null device."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
