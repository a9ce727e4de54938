"""The speed of training steps, without compilation, evaluations and checkpoints."""
import contextlib
import time
from collections.abc import Iterator


class StepTimer:
  """Measures the counted steps since the last `take`, without paused time."""

  def __init__(self):
    self._begin()

  def _begin(self) -> None:
    self._start, self._steps, self._waited = time.monotonic(), 0, 0.0

  def count(self) -> None:
    """Counts a step. A step that compiles runs inside `paused` and is not counted."""
    self._steps += 1

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time of the body."""
    before = time.monotonic()
    try:
      yield
    finally:
      self._start += time.monotonic() - before

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time of the body as waiting for data."""
    before = time.monotonic()
    try:
      yield
    finally:
      self._waited += time.monotonic() - before

  def take(self, batch_size: int) -> dict[str, float]:
    """Returns seconds_per_step, images_per_second and data_wait_share (0 to 1) since the last call; {} without a step.
    """
    seconds, steps, waited = time.monotonic() - self._start, self._steps, self._waited
    self._begin()
    if not steps:
      return {}
    return {"seconds_per_step": seconds / steps, "images_per_second": steps * batch_size / seconds,
            "data_wait_share": waited / seconds}
