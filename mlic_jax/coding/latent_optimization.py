"""Latents that are optimised for the picture at hand: the optimisation alone, for any loss of them.

What the encoder network gives is an approximation of the best latents (Yang, Bamler and Mandt, "Improving inference for
neural image compression", NeurIPS 2020). Here y and z follow the gradient of a loss under a relaxation of rounding that
is annealed (model/soft_rounding.py). refined_codec.py makes files of them.
"""
import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

from mlic_jax.model.quantizers import ROUNDING, Quantiser
from mlic_jax.model.soft_rounding import ADVANTAGES, annealed
from mlic_jax.runtime.shape_cache import shape_cached

CHECKS = 10    # how often latents are rounded on the way, to keep the best, and to stop when nothing is gained
FINAL_RATE = 0.1  # of the learning rate, where the schedule ends
PATIENCE = 3   # checks in a row without a better one, in the colder half, after which it stops

_ADAM = optax.scale_by_adam()

# (y, z, quantiser, key) -> scalar, differentiable in y and z. As jax.tree_util.Partial its arrays are arguments of the
# compiled step, so that pictures of one size share it.
Loss = Callable[[jax.Array, jax.Array, Quantiser, jax.Array], jax.Array]
Pair = tuple[jax.Array, jax.Array]   # y, z
Gradient = Callable[[jax.Array, jax.Array, Quantiser, jax.Array], Pair]   # of a Loss, by y and z


class RefineError(ValueError):
  """A refinement that cannot be made; one line."""


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How latents are refined. The temperature falls on a straight line from `hot` to `cold`, and the rate from
  `learning_rate` to FINAL_RATE of it. RefineError for what cannot be.

  These are what did best in 100 steps of nano on held-out photographs (docs/research.md); the temperatures are for
  "sigmoid", and other relaxations want others. `relaxation` is a name of model/soft_rounding.py, or a function of the
  temperature that gives a Quantiser: the same object every time, as another one is compiled anew."""
  steps: int | None = 100
  seconds: float | None = None   # in place of steps; what has to be compiled does not count
  learning_rate: float = 3e-2    # of Adam, on y and z
  hot: float = 1.0
  cold: float = 0.3
  relaxation: str | Callable[[jax.Array], Quantiser] = "sigmoid"

  def __post_init__(self):
    if (self.steps is None) == (self.seconds is None) or not 0 < (self.steps or self.seconds or 0) < math.inf:
      raise RefineError(f"steps={self.steps} and seconds={self.seconds}; wanted one of them, above 0")
    if not all(0 < each < math.inf for each in (self.learning_rate, self.hot, self.cold)):
      raise RefineError(f"learning_rate={self.learning_rate}, hot={self.hot}, cold={self.cold}; wanted numbers above 0")
    if isinstance(self.relaxation, str) and self.relaxation not in ADVANTAGES:
      raise RefineError(f"relaxation={self.relaxation!r}; wanted one of {', '.join(ADVANTAGES)}, or a function")

  @classmethod
  def of(cls, budget: "int | str | Schedule") -> "Schedule":
    """100 or "100": steps; "50s": seconds; a Schedule is what it is. RefineError in one line for anything else."""
    if isinstance(budget, cls):
      return budget
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]+)?)s", str(budget))
    if not match or not float(match[1] or match[2]):
      raise RefineError(f"refine={budget!r}; wanted a number of steps from 1 on, as 100, or a time, as 50s")
    return cls(int(match[1])) if match[1] else cls(None, float(match[2]))

  def __str__(self) -> str:
    return f"{self.steps}" if self.seconds is None else f"{self.seconds:g}s"

  def temperature(self, done: float) -> float:
    """When a share of 0 to 1 is done."""
    return self.hot + (self.cold - self.hot) * done

  def rate(self, done: float) -> float:
    """Of Adam, when a share of 0 to 1 is done."""
    return self.learning_rate * (1 - (1 - FINAL_RATE) * done)


def refine(latents: Pair, loss: Loss, key: jax.Array, schedule: Schedule = Schedule(),
           progress: Callable[[float, float], None] = lambda done, loss: None,
           gradient: Gradient | None = None) -> Pair:
  """The latents (y, z) with the lowest loss under plain rounding that was met on the way, the given ones among them.

  Args:
    latents: y (B, h, w, M) and z (B, h/4, w/4, N) to start from.
    loss: see Loss. Where it draws, it draws from the key that it is given.
    key: of the random choices.
    progress: called at the start and at every check with the share that is done, and the loss of the rounded latents.
    gradient: of the loss, for who has it by a cheaper way than jax.grad; a Partial as the loss.

  Stops early when the colder half brings nothing, or the loss is not finite. RefineError when the time is up before the
  first step is.
  """
  loss = loss if isinstance(loss, jax.tree_util.Partial) else jax.tree_util.Partial(loss)
  gradient = gradient or jax.tree_util.Partial(_gradient_of, loss)
  step = lambda state, number, done: jax.block_until_ready(
      _step(*state, gradient, jax.random.fold_in(key, number), schedule.temperature(done), schedule.rate(done),
            schedule.relaxation))
  state, best, lowest = (latents, first_moments(latents)), latents, float(_loss_of_rounded(latents, loss))
  progress(0.0, lowest)
  if schedule.seconds is not None:
    step(state, 0, 0.0)                                  # compiles
  number, done, checks, in_vain, start = 0, 0.0, 0, 0, time.perf_counter()
  while done < 1:
    state = step(state, number, done)
    number += 1
    elapsed = time.perf_counter() - start
    if schedule.seconds is not None and number == 1 and elapsed > schedule.seconds:
      raise RefineError(f"refine={schedule}; a step takes {elapsed:.2g} s here")
    if schedule.steps is not None:
      done = number / schedule.steps
    elif schedule.seconds is not None:
      done = min(elapsed / schedule.seconds, 1.0)
    if int(done * CHECKS) == checks:
      continue
    checks, now = int(done * CHECKS), float(_loss_of_rounded(state[0], loss))
    progress(done, now)
    if now < lowest:
      lowest, best, in_vain = now, state[0], 0
    elif done > 0.5:
      in_vain += 1
    if in_vain == PATIENCE or not math.isfinite(now):
      break
  return best


def first_moments(latents: Pair) -> Any:
  """What a step has of those before it, at the first."""
  return _ADAM.init(latents)


def step(latents: Pair, moments: Any, gradient: Gradient, key: jax.Array, temperature: float, learning_rate: float,
         relaxation: str | Callable) -> tuple[Pair, Any]:
  """(latents, moments) after one more step; `relaxation` as in a Schedule."""
  quantiser = annealed(relaxation, temperature) if isinstance(relaxation, str) else relaxation(temperature)
  updates, moments = _ADAM.update(gradient(*latents, quantiser, key), moments)
  return jax.tree.map(lambda each, update: each - learning_rate * update, latents, updates), moments


_step = shape_cached(size=0, static=6)(step)


def _gradient_of(loss: Loss, y: jax.Array, z: jax.Array, quantiser: Quantiser, key: jax.Array) -> Pair:
  return jax.grad(loss, argnums=(0, 1))(y, z, quantiser, key)


@shape_cached(size=0)
def _loss_of_rounded(latents: Pair, loss: Loss) -> jax.Array:
  return loss(*latents, ROUNDING, jax.random.key(0))
