"""Latent optimization: gradient descent on y and z of one image, for any differentiable loss.

The latents of the analysis transform only approximate the best ones (Yang, Bamler and Mandt, "Improving Inference for
Neural Image Compression", NeurIPS 2020). The gradient goes through an annealed relaxation of rounding
(model/soft_rounding.py). latent_optimizer.py applies the optimization to an image and its rate-distortion loss.
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

CHECKS = 10    # number of evaluations of the rounded latents, to save the best ones and to stop early
PATIENCE = 3   # in the second half, the number of checks in a row without improvement that stops the optimization

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
  """Optimizes latents; returns the (y, z) with the lowest loss under rounding among the given and the checked ones.

  It stops early if the second half of the schedule brings no improvement, or if the loss is not finite.

  Args:
    latents: initial y (B, h, w, M) and z (B, h/4, w/4, N).
    loss: see Loss. It takes all randomness from its key.
    key: PRNG key; step i uses fold_in(key, i).
    schedule: steps or seconds, temperatures, learning rates.
    progress: called at the start and at every check with the completed fraction and the loss of the rounded latents.
    gradient: gradient of the loss, if there is a cheaper way than jax.grad; a Partial like the loss.

  RefineError if the time limit ends before the first step does.
  """
  loss = loss if isinstance(loss, jax.tree_util.Partial) else jax.tree_util.Partial(loss)
  gradient = gradient or jax.tree_util.Partial(_gradient_of, loss)
  step = lambda state, number, done: jax.block_until_ready(
      _step(*state, gradient, jax.random.fold_in(key, number), schedule.temperature(done), schedule.rate(done),
            schedule.relaxation))
  state, best, lowest = (latents, first_moments(latents)), latents, float(_loss_of_rounded(latents, loss))
  progress(0.0, lowest)
  if schedule.seconds is not None:
    step(state, 0, 0.0)                                  # compiles before the clock starts
  number, done, checks, failures, start = 0, 0.0, 0, 0, time.perf_counter()
  while done < 1:
    state = step(state, number, done)
    number += 1
    elapsed = time.perf_counter() - start
    if schedule.seconds is not None and number == 1 and elapsed > schedule.seconds:
      raise RefineError(f"refine={schedule} is too short: one step takes {elapsed:.2g} s on this machine")
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
  """Returns the initial state of Adam."""
  return _ADAM.init(latents)


def step(latents: LatentPair, moments: Any, gradient: Gradient, key: jax.Array, temperature: float,
         learning_rate: float, relaxation: str | Callable) -> tuple[LatentPair, Any]:
  """Takes one step of Adam and returns (latents, moments); `relaxation` as in a Schedule."""
  quantizer = annealed(relaxation, temperature) if isinstance(relaxation, str) else relaxation(temperature)
  updates, moments = _ADAM.update(gradient(*latents, quantizer, key), moments)
  return jax.tree.map(lambda each, update: each - learning_rate * update, latents, updates), moments


_step = shape_cached(size=0, static=6)(step)


def _gradient_of(loss: Loss, y: jax.Array, z: jax.Array, quantizer: Quantizer, key: jax.Array) -> LatentPair:
  return jax.grad(loss, argnums=(0, 1))(y, z, quantizer, key)


@shape_cached(size=0)
def _loss_of_rounded(latents: LatentPair, loss: Loss) -> jax.Array:
  return loss(*latents, ROUNDING, jax.random.key(0))
