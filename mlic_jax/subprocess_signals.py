"""Processes that are started, and what a terminal sends them."""
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def ignore_signals_in_children() -> Iterator[None]:
  """What is started here does not hear Ctrl-C, which a terminal sends to a program and to all that it has started.

  The program then ends its workers in its own time, and none of them prints a traceback. A Ctrl-C of this moment is not
  lost: it is delivered at the end.
  """
  if not hasattr(signal, "pthread_sigmask"):             # no signals of this kind, as on Windows
    yield
    return
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})   # which a new process inherits
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
