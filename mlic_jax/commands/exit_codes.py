"""The exit status of every command, and the one line that reports a user error."""
from collections.abc import Callable

from mlic_jax.console import complain, has_lost_output, prepare
from mlic_jax.errors import exit_status, for_the_user


class UsageError(ValueError):
  """Arguments that cannot be used; one line with what came and what was wanted."""


class Interruption(KeyboardInterrupt):
  """Ctrl-C in a command that can be continued; one line that says how."""


def run_to_exit_status(work: Callable[[], int | None], prefix: str) -> int:
  """Runs `work` and returns the exit status: what `work` returns, 0 for None, 130 after Ctrl-C.

  0 becomes 1 when a line for stdout could not be written. A user error (see errors.py) is reported in one line on
  stderr, behind `prefix`, and has its own exit status; other errors are raised.
  """
  prepare()
  try:
    return work() or int(has_lost_output())
  except KeyboardInterrupt as stop:
    complain(f"interrupted{'; ' if str(stop) else ''}{stop}")
    return 130
  except Exception as error:
    line = for_the_user(error)
    if line is None:
      raise
    complain(f"{prefix}: {line}")
    return exit_status(error)
