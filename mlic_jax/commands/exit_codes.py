"""How every program ends: its exit status, and the one line that a user is told."""
from collections.abc import Callable

from mlic_jax.console import complain, prepare
from mlic_jax.errors import exit_status, for_the_user


def outcome(work: Callable[[], int | None], name: str, interrupted: str = "") -> int:
  """The exit status of a program that does `work`: what that returns, 0 for nothing, and 130 for Ctrl-C.

  An error that is the user's is a line on stderr that begins with `name`, and its own status; others are raised.
  `interrupted` is the line for Ctrl-C, where it says more than that.
  """
  prepare()
  try:
    return work() or 0
  except KeyboardInterrupt:
    complain(interrupted or f"{name}: interrupted")
    return 130
  except Exception as error:
    line = for_the_user(error)
    if line is None:
      raise
    complain(f"{name}: {line}")
    return exit_status(error)
