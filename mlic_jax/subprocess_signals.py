"""Signals of child processes."""
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def ignore_signals_in_children() -> Iterator[None]:
  """Context manager in which new child processes ignore Ctrl-C, which a terminal sends to all of them.

  The program then ends its workers itself, and none of them prints a traceback. A Ctrl-C inside the block is delivered
  at its end.
  """
  if not hasattr(signal, "pthread_sigmask"):             # Windows has no such signals
    yield
    return
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})   # new processes inherit the mask
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
