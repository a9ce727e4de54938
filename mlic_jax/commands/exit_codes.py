"""The exit status of every command, and the one line that reports a user error or a signal."""
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from mlic_jax.console import complain, has_lost_output, prepare
from mlic_jax.errors import exit_status, for_the_user

TERMINATING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class UsageError(ValueError):
  """The arguments of a command are invalid; the message is one line with the given and the expected ones."""


class Interruption(KeyboardInterrupt):
  """A signal ends a command: Ctrl-C, SIGTERM or SIGHUP. `advice` says how to continue the work."""

  def __init__(self, signum: int = signal.SIGINT, advice: str = ""):
    super().__init__(signum, advice)
    self.signum, self.advice = signum, advice
    self.status = 128 + signum
    self.word = "interrupted" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}"

  @classmethod
  def of(cls, error: KeyboardInterrupt, advice: str = "") -> "Interruption":
    """Converts a KeyboardInterrupt to an Interruption with an advice; other KeyboardInterrupts are Ctrl-C."""
    return cls(error.signum if isinstance(error, Interruption) else signal.SIGINT, advice)


def run_to_exit_status(work: Callable[[], int | None], prefix: str) -> int:
  """Runs `work` and returns the exit status: the result of `work`, 0 for None, or 128 + N after signal N.

  0 becomes 1 if a line for stdout could not be written. A user error (errors.py) is reported in one line on stderr that
  begins with `prefix`, and has an exit status of its own. Other errors are raised.
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

  A second signal has its default effect. A signal that is ignored, as under nohup, stays ignored."""
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
