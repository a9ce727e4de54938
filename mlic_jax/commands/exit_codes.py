"""The exit status of every command, and the one line that reports a user error or a signal."""
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from mlic_jax.console import complain, has_lost_output, prepare
from mlic_jax.errors import exit_status, for_the_user

TERMINATING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class UsageError(ValueError):
  """Arguments that cannot be used; one line with what came and what was wanted."""


class Interruption(KeyboardInterrupt):
  """A signal that ends a command: Ctrl-C, SIGTERM or SIGHUP. `advice` says how the work can be continued."""

  def __init__(self, signum: int = signal.SIGINT, advice: str = ""):
    super().__init__(signum, advice)
    self.signum, self.advice = signum, advice
    self.status = 128 + signum
    self.word = "interrupted" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}"

  @classmethod
  def of(cls, error: KeyboardInterrupt, advice: str = "") -> "Interruption":
    """The Interruption of a KeyboardInterrupt, with an advice; a plain one is Ctrl-C."""
    return cls(error.signum if isinstance(error, Interruption) else signal.SIGINT, advice)


def run_to_exit_status(work: Callable[[], int | None], prefix: str) -> int:
  """Runs `work` and returns the exit status: what `work` returns, 0 for None, 128 + N after signal N.

  0 becomes 1 when a line for stdout could not be written. A user error (see errors.py) is reported in one line on
  stderr, behind `prefix`, and has its own exit status; other errors are raised.
  """
  prepare()
  try:
    with _signals_as_exceptions():
      return work() or int(has_lost_output())
  except KeyboardInterrupt as error:
    stop = error if isinstance(error, Interruption) else Interruption()
    complain(f"{stop.word}{'; ' if stop.advice else ''}{stop.advice}")
    return stop.status
  except Exception as error:
    line = for_the_user(error)
    if line is None:
      raise
    complain(f"{prefix}: {line}")
    return exit_status(error)


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
  """Raises Interruption for SIGTERM and SIGHUP, so that incomplete files, worker processes and locks are removed.

  A second one acts as before. A signal that is ignored, as under nohup, stays ignored."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {number: signal.getsignal(number) for number in TERMINATING}
  before = {number: handler for number, handler in before.items() if handler == signal.SIG_DFL}

  def stop(signum, _):
    restore()
    raise Interruption(signum)

  def restore():
    for number, handler in before.items():
      signal.signal(number, handler)

  for number in before:
    signal.signal(number, stop)
  try:
    yield
  finally:
    restore()
