"""Optimization of the latents of one image, for any loss of them.

The latents of the analysis transform approximate the best ones (Yang, Bamler and Mandt, "Improving inference for neural
image compression", NeurIPS 2020). Here y and z follow the gradient of a loss under a relaxation of rounding that is
annealed (model/soft_rounding.py). latent_optimizer.py optimizes them for an image and its file.
"""
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

from mlic_jax.coding.optimization_schedule import RefineError, Schedule
from mlic_jax.model.quantizers import ROUNDING, Quantizer
from mlic_jax.model.soft_rounding import annealed
from mlic_jax.runtime.shape_cache import shape_cached

__all__ = ["Gradient", "LatentPair", "Loss", "RefineError", "Schedule", "first_moments", "refine", "step"]

CHECKS = 10    # evaluations of the rounded latents on the way, to save the best, and to stop when nothing is gained
PATIENCE = 3   # checks in a row without improvement, in the colder half, after which it stops

DEFAULT_SCHEDULE = Schedule()
_ADAM = optax.scale_by_adam()

# (y, z, quantizer, key) -> scalar, differentiable in y and z. As jax.tree_util.Partial its arrays are arguments of the
# compiled step, so that images of one size share it.
Loss = Callable[[jax.Array, jax.Array, Quantizer, jax.Array], jax.Array]
LatentPair = tuple[jax.Array, jax.Array]   # y (B, h, w, M), z (B, h/4, w/4, N)
Gradient = Callable[[jax.Array, jax.Array, Quantizer, jax.Array], LatentPair]   # of a Loss, by y and z


def refine(latents: LatentPair, loss: Loss, key: jax.Array, schedule: Schedule = DEFAULT_SCHEDULE,
           progress: Callable[[float, float], None] = lambda done, loss: None,
           gradient: Gradient | None = None) -> LatentPair:
  """The latents (y, z) of the lowest loss under plain rounding that was found, the given ones among them.

  Args:
    latents: y (B, h, w, M) and z (B, h/4, w/4, N) to start from.
    loss: see Loss. Where it draws, it draws from the key that it is given.
    key: of the random choices.
    schedule: steps or seconds, temperatures, learning rates.
    progress: called at the start and at every check with the fraction that is done, and the loss of the rounded
      latents.
    gradient: of the loss, where there is a cheaper way than jax.grad; a Partial as the loss.

  Stops early when the colder half brings nothing, or the loss is not finite. RefineError when the time is up before the
  end of the first step.
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
  number, done, checks, failures, start = 0, 0.0, 0, 0, time.perf_counter()
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
      lowest, best, failures = now, state[0], 0
    elif done > 0.5:
      failures += 1
    if failures == PATIENCE or not math.isfinite(now):
      break
  return best


def first_moments(latents: LatentPair) -> Any:
  """The state of Adam before the first step."""
  return _ADAM.init(latents)


def step(latents: LatentPair, moments: Any, gradient: Gradient, key: jax.Array, temperature: float,
         learning_rate: float, relaxation: str | Callable) -> tuple[LatentPair, Any]:
  """(latents, moments) after one more step; `relaxation` as in a Schedule."""
  quantizer = annealed(relaxation, temperature) if isinstance(relaxation, str) else relaxation(temperature)
  updates, moments = _ADAM.update(gradient(*latents, quantizer, key), moments)
  return jax.tree.map(lambda each, update: each - learning_rate * update, latents, updates), moments


_step = shape_cached(size=0, static=6)(step)


def _gradient_of(loss: Loss, y: jax.Array, z: jax.Array, quantizer: Quantizer, key: jax.Array) -> LatentPair:
  return jax.grad(loss, argnums=(0, 1))(y, z, quantizer, key)


@shape_cached(size=0)
def _loss_of_rounded(latents: LatentPair, loss: Loss) -> jax.Array:
  return loss(*latents, ROUNDING, jax.random.key(0))
