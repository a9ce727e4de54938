"""Profiler traces of a few training steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from mlic_jax.errors import ConfigError


def steps_of_profile(text: str) -> range:
  """Parses "a:b" as the steps a .. b - 1, and "" as no steps. ConfigError for anything else."""
  first, colon, end = text.partition(":")
  if not text:
    return range(0)
  if not (colon and first.isdecimal() and end.isdecimal() and 0 < int(first) < int(end)):
    raise ConfigError(f"profile_steps={text!r}; wanted 'a:b' with 0 < a < b, for steps a to b - 1")
  return range(int(first), int(end))


class Profile:
  """Writes a trace of the steps "a:b" to `directory`. A run that starts after step a writes none."""

  def __init__(self, steps: str, directory: Path):
    self._steps, self._directory, self._running = steps_of_profile(steps), directory, False

  def before(self, step: int) -> None:
    """Starts the trace if it is due; call it before every step."""
    if self._steps and step == self._steps.start:
      jax.profiler.start_trace(str(self._directory))
      self._running = True

  def after(self, step: int, result: Any) -> None:
    """Ends the trace if it is due, once `result` of the step is computed; call it after every step."""
    if self._running and step == self._steps.stop - 1:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Ends a trace that is still running."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
