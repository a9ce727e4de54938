"""Schedule: how long and how the latents of an image are optimized (latent_optimization.py)."""
import dataclasses
import math
import re
from collections.abc import Callable

import jax

from mlic_jax.model.quantizers import Quantizer
from mlic_jax.model.soft_rounding import ADVANTAGES

FINAL_RATE = 0.1  # share of the learning rate that is left at the end


class RefineError(ValueError):
  """Latents that cannot be optimized as asked; one line."""


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Steps, temperatures and learning rates of latent optimization. RefineError for values that cannot be used.

  The temperature falls linearly from `hot` to `cold`, the learning rate from `learning_rate` to FINAL_RATE of it. The
  defaults did best in 100 steps of nano on held-out photographs (docs/research.md). The temperatures are for "sigmoid";
  other relaxations want others.

  Attributes:
    steps: number of steps; None with `seconds`.
    seconds: a time limit instead, which does not include compilation.
    learning_rate: of Adam, on y and z.
    hot, cold: temperatures of the first and of the last step.
    relaxation: a name of model/soft_rounding.py, or a function of the temperature that returns a Quantizer. It has to
      be the same object every time, as another one is compiled anew.
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
    if isinstance(self.relaxation, str) and self.relaxation not in ADVANTAGES:
      raise RefineError(f"relaxation={self.relaxation!r}; wanted one of {', '.join(ADVANTAGES)}, or a function")

  @classmethod
  def of(cls, budget: "int | str | Schedule") -> "Schedule":
    """The schedule of 100 or "100" steps, or of "50s"; a Schedule is returned as it is. RefineError otherwise."""
    if isinstance(budget, cls):
      return budget
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]+)?)s", str(budget))
    if not match or not float(match[1] or match[2]):
      raise RefineError(f"refine={budget!r}; wanted a number of steps from 1 on, as 100, or a time, as 50s")
    return cls(int(match[1])) if match[1] else cls(None, float(match[2]))

  def __str__(self) -> str:
    return f"{self.steps}" if self.seconds is None else f"{self.seconds:g}s"

  def one_step(self) -> "Schedule":
    """A single step, which compiles everything that this schedule runs."""
    return dataclasses.replace(self, steps=1, seconds=None)

  def temperature(self, done: float) -> float:
    """The temperature when the fraction `done` (0 to 1) of the schedule is done."""
    return self.hot + (self.cold - self.hot) * done

  def rate(self, done: float) -> float:
    """The learning rate of Adam when the fraction `done` (0 to 1) of the schedule is done."""
    return self.learning_rate * (1 - (1 - FINAL_RATE) * done)
