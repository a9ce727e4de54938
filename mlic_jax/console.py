"""What programs say: names as they can be shown, and no end because nobody reads on."""
import contextlib
import logging
import os
import sys
import warnings


def prepare() -> None:
  """For the programs, at their start: what is printed may hold any file's name, and libraries add no lines to it."""
  for stream in sys.stdout, sys.stderr:
    if hasattr(stream, "reconfigure"):                # not what stands in for a terminal in notebooks
      stream.reconfigure(errors="backslashreplace")
  warnings.filterwarnings("ignore", module=r"PIL\.")    # of metadata, in pictures that are read all the same
  for library in "PIL", "matplotlib":                   # whose settings files are not used (matplotlib_settings.py)
    logging.getLogger(library).addHandler(logging.NullHandler())


def printable(text: str) -> str:
  """One line that any terminal and any file of text can hold: "\\\\n" for a new line, "\\\\udce9" for a byte 0xe9."""
  return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def say(line: str) -> None:
  """Prints a line on stdout. Who read it may have gone (`| head -1`): then nobody is told, and the work goes on."""
  try:
    print(printable(line), flush=True)
  except BrokenPipeError:
    _print_nowhere()                                  # what is still in the buffer, too, at the end of the program


def complain(*lines: str) -> None:
  """The same, of lines on stderr."""
  with contextlib.suppress(BrokenPipeError):
    print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)


def rich_console(**options):
  """A console for tables of names that users gave: no "[...]" in them is markup, and no ":...:" an emoji."""
  from rich.console import Console

  class Lasting(Console):
    def on_broken_pipe(self):                          # rich's own ends the program
      self.quiet = True
      _print_nowhere()

  return Lasting(markup=False, emoji=False, highlight=False, **options)


def _print_nowhere() -> None:
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
