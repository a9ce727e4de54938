"""The speed of training steps, without compilation, evaluations and checkpoints."""
import contextlib
import time
from collections.abc import Iterator


class StepTimer:
  """Measures the steps since the last `take`: those that were counted, in the time that was not paused."""

  def __init__(self):
    self._begin()

  def _begin(self) -> None:
    self._start, self._steps, self._waited = time.monotonic(), 0, 0.0

  def count(self) -> None:
    """Counts a step. A step that compiles runs inside of `paused` and is not counted."""
    self._steps += 1

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out the time of what runs inside."""
    before = time.monotonic()
    try:
      yield
    finally:
      self._start += time.monotonic() - before

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Adds the time of what runs inside to that of waiting for data."""
    before = time.monotonic()
    try:
      yield
    finally:
      self._waited += time.monotonic() - before

  def take(self, batch_size: int) -> dict[str, float]:
    """seconds_per_step, images_per_second and data_wait_share (0 to 1) since the last call; empty without a step."""
    seconds, steps, waited = time.monotonic() - self._start, self._steps, self._waited
    self._begin()
    if not steps:
      return {}
    return {"seconds_per_step": seconds / steps, "images_per_second": steps * batch_size / seconds,
            "data_wait_share": waited / seconds}
