"""Schedule: steps, temperatures and learning rates of latent optimization (latent_optimization.py)."""
import dataclasses
import math
import re
from collections.abc import Callable

import jax

from mlic_jax.model.quantizers import Quantizer
from mlic_jax.model.soft_rounding import LOG_ODDS

FINAL_RATE = 0.1  # final learning rate, as a fraction of the initial one


class RefineError(ValueError):
  """The options of latent optimization are invalid for the model or image; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Steps, temperatures and learning rates of latent optimization. RefineError for invalid values.

  The temperature falls linearly from `hot` to `cold`, the learning rate from `learning_rate` to FINAL_RATE of it. The
  defaults were the best for 100 steps with nano on held-out photographs (docs/research.md). The temperatures suit
  "sigmoid"; other relaxations need others.

  Attributes:
    steps: number of steps; None with `seconds`.
    seconds: time limit in seconds instead of a number of steps; it does not include compilation.
    learning_rate: initial learning rate of Adam, for y and z.
    hot, cold: temperatures at the start and at the end.
    relaxation: a name of model/soft_rounding.py, or a function of the temperature that returns a Quantizer. Pass the
      same function object each time: another object is compiled again.
  """
  steps: int | None = 100
  seconds: float | None = None
  learning_rate: float = 3e-2
  hot: float = 1.0
  cold: float = 0.3
  relaxation: str | Callable[[jax.Array], Quantizer] = "sigmoid"

  def __post_init__(self):
    if (self.steps is None) == (self.seconds is None) or not 0 < (self.steps or self.seconds or 0) < math.inf:
      raise RefineError(f"steps={self.steps} and seconds={self.seconds}; wanted one of them, above 0")
    if not all(0 < each < math.inf for each in (self.learning_rate, self.hot, self.cold)):
      raise RefineError(f"learning_rate={self.learning_rate}, hot={self.hot}, cold={self.cold}; wanted numbers above 0")
    if isinstance(self.relaxation, str) and self.relaxation not in LOG_ODDS:
      raise RefineError(f"relaxation={self.relaxation!r}; wanted one of {', '.join(LOG_ODDS)}, or a function")

  @classmethod
  def of(cls, budget: "int | str | Schedule") -> "Schedule":
    """Converts a number of steps (100 or "100") or a time ("50s") to a Schedule; a Schedule is returned unchanged.

    RefineError for other values."""
    if isinstance(budget, cls):
      return budget
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]+)?)s", str(budget))
    if not match or not float(match[1] or match[2]):
      raise RefineError(f"refine={budget!r}; wanted a number of steps, such as 100, or a time, such as 50s")
    return cls(int(match[1])) if match[1] else cls(None, float(match[2]))

  def __str__(self) -> str:
    return f"{self.steps}" if self.seconds is None else f"{self.seconds:g}s"

  def one_step(self) -> "Schedule":
    """Returns a schedule with a single step, which compiles everything that this schedule runs."""
    return dataclasses.replace(self, steps=1, seconds=None)

  def temperature(self, done: float) -> float:
    """Returns the temperature at the completed fraction `done` (0 to 1) of the schedule."""
    return self.hot + (self.cold - self.hot) * done

  def rate(self, done: float) -> float:
    """Returns the learning rate of Adam at the completed fraction `done` (0 to 1) of the schedule."""
    return self.learning_rate * (1 - (1 - FINAL_RATE) * done)
