"""Refinement: latents that are optimised for the picture at hand. It costs the encoder time, and the decoder nothing.

    refine(latents, loss, key, schedule)     the optimisation alone, for any loss of (y, z)
    refined(codec, image, quality, budget)   the better of plain and refined latents, by the file that they make

What the encoder network gives is an approximation of the best latents (Yang, Bamler and Mandt, "Improving inference for
neural image compression", NeurIPS 2020). Here y and z follow the gradient of rate and distortion under a relaxation of
rounding that is annealed (model/relaxations.py), and are rounded at the end as ever: by the ordinary passes.
"""
import dataclasses
import functools
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlic_jax.coding.codec import Codec
from mlic_jax.coding.latents import Latents
from mlic_jax.coding.memory import check_memory
from mlic_jax.metrics import MS_SSIM_MIN_SIDE, ms_ssim, mse
from mlic_jax.model.quantisers import ROUNDING, Quantiser
from mlic_jax.model.relaxations import annealed

CHECKS = 5     # how often latents are rounded on the way, to keep the best, and to stop when nothing is gained
PATIENCE = 2   # checks without a better one, after which it stops


class RefineError(ValueError):
  """A refinement that cannot be made; one line."""


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How latents are refined. The temperature falls geometrically from `hot` to `cold`."""
  steps: int = 100
  learning_rate: float = 1e-2   # of Adam, on y and z
  hot: float = 0.5
  cold: float = 0.05
  relaxation: str = "atanh"

  def temperature(self, step: jax.Array | int) -> jax.Array:
    """At step 0 .. steps - 1."""
    return self.hot * (self.cold / self.hot)**(step / max(1, self.steps - 1))


class Budget(NamedTuple):
  """How long to refine: so many steps, or as many as fit into so many seconds."""
  steps: int | None
  seconds: float | None = None

  @classmethod
  def parse(cls, text: str | int) -> "Budget":
    """"100": steps; "50s": seconds. RefineError in one line for anything else, and for nothing."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)s", str(text))
    if not match or not float(match[1] or match[2]):
      raise RefineError(f"refine={text!r}; wanted a number of steps from 1 on, as 100, or a time, as 50s")
    return cls(int(match[1])) if match[1] else cls(None, float(match[2]))


# A loss of latents: (y, z, quantiser, key) -> scalar. As jax.tree_util.Partial its arrays are arguments of the compiled
# step, so that pictures of one size share it.
Loss = Callable[[jax.Array, jax.Array, Quantiser, jax.Array], jax.Array]


def refine(latents: tuple[jax.Array, jax.Array], loss: Loss, key: jax.Array, schedule: Schedule = Schedule(),
           seconds: float | None = None, progress: Callable[[int, int, float], None] | None = None,
           ) -> tuple[jax.Array, jax.Array]:
  """The latents (y, z) with the lowest loss under plain rounding that was met on the way, the given ones among them.

  Args:
    latents: y (B, h, w, M) and z (B, h/4, w/4, N) to start from.
    loss: differentiable in y and z.
    key: of the random choices.
    schedule: with `seconds`, its number of steps is replaced by how many fit.
    progress: called with the step, the number of steps, and the loss of what would be written, where that was computed.

  RefineError when not even one step fits into `seconds`; compiling does not count.
  """
  loss = loss if isinstance(loss, jax.tree_util.Partial) else jax.tree_util.Partial(loss)
  optimiser = optax.adam(schedule.learning_rate)
  state, best = (latents, optimiser.init(latents)), latents
  lowest, checked_in_vain = float(_loss_of_rounded(loss, latents)), 0
  if progress:
    progress(0, schedule.steps, lowest)
  if seconds is not None:
    schedule = dataclasses.replace(schedule, steps=_steps_within(seconds, state, loss, key, schedule))
  for step in range(schedule.steps):
    state = _step(state, loss, jax.random.fold_in(key, step), schedule.temperature(step), schedule.relaxation,
                  schedule.learning_rate)
    if (step + 1) % max(1, schedule.steps // CHECKS) == 0 or step + 1 == schedule.steps:
      now = float(_loss_of_rounded(loss, state[0]))
      if progress:
        progress(step + 1, schedule.steps, now)
      checked_in_vain = 0 if now < lowest else checked_in_vain + 1
      if now < lowest:
        lowest, best = now, state[0]
      if checked_in_vain >= PATIENCE and step + 1 > schedule.steps // 2:
        break
  return best


def _steps_within(seconds: float, state: Any, loss: Loss, key: jax.Array, schedule: Schedule) -> int:
  """How many steps fit, by the time of one that is compiled already."""
  run = lambda: jax.block_until_ready(_step(state, loss, key, jnp.float32(schedule.hot), schedule.relaxation,
                                            schedule.learning_rate))
  run()
  start = time.perf_counter()
  run()
  of_one = time.perf_counter() - start
  if seconds < of_one:
    raise RefineError(f"refine={seconds:g}s; a step takes {of_one:.2f} s here")
  return int(seconds / of_one)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _step(state: Any, loss: Loss, key: jax.Array, temperature: jax.Array, relaxation: str, learning_rate: float) -> Any:
  latents, moments = state
  quantiser = annealed(relaxation, temperature)
  gradient = jax.grad(lambda latents: loss(*latents, quantiser, key))(latents)
  updates, moments = optax.adam(learning_rate).update(gradient, moments)
  return optax.apply_updates(latents, updates), moments


@jax.jit
def _loss_of_rounded(loss: Loss, latents: tuple[jax.Array, jax.Array]) -> jax.Array:
  return loss(*latents, ROUNDING, jax.random.key(0))


def refined(codec: Codec, image: np.ndarray, quality: float | None, budget: Budget, *, lmbda: float | None = None,
            schedule: Schedule = Schedule(), seed: int = 0,
            progress: Callable[[int, int, float], None] | None = None) -> Latents:
  """The latents of a picture (H, W, 3) uint8 after refinement, or the plain ones where their file is better.

  Args:
    quality: as in `Codec.encode`.
    budget: steps or seconds.
    lmbda: weight of the distortion, in the scale of training; None for that of the quality, geometric between rates.

  RefineError when the model directory does not say what the model was trained for, and no lmbda came; MemoryLimitError
  before the work. Other errors as in `Codec.encode`.
  """
  height, width = image.shape[:2]
  check_memory(codec.config, height, width, refining=True)
  plain = codec.latents(image, quality)
  distortion, weight = objective(codec, plain.quality, lmbda)
  if distortion == "ms_ssim" and min(height, width) < MS_SSIM_MIN_SIDE:
    raise RefineError(f"a picture of {height}x{width}; {codec.name} was trained for MS-SSIM, which wants at least "
                      f"{MS_SSIM_MIN_SIDE} pixels")
  x = codec.padded(image).astype(np.float32) / 255
  inside = np.zeros((1, *x.shape[1:3], 1), np.float32)
  inside[:, :height, :width] = 1
  loss = jax.tree_util.Partial(_loss_of(codec.module, distortion), codec.variables, x, inside, plain.quality,
                               jnp.float32(weight))
  if budget.steps is not None:
    schedule = dataclasses.replace(schedule, steps=budget.steps)
  y, z = refine((plain.y, plain.z), loss, jax.random.key(seed), schedule, budget.seconds, progress)
  better = plain._replace(y=y, z=z)
  true_loss = lambda latents: _true_loss(codec, image, latents, distortion, weight)
  return min((better, plain), key=true_loss)


def objective(codec: Codec, quality: float | None, lmbda: float | None = None) -> tuple[str, float]:
  """The distortion that a codec was trained for, and its weight at a quality. RefineError when that is not known."""
  training = codec.training or {}
  distortion = training.get("config", {}).get("distortion", "mse" if lmbda else None)
  known = {row["quality"]: row["lmbda"] for row in training.get("eval", ()) if "lmbda" in row}
  if lmbda is not None:
    if not lmbda > 0:
      raise RefineError(f"lmbda={lmbda}; wanted a number above 0")
    return distortion, lmbda
  if distortion is None or not known:
    raise RefineError(f"{codec.name}: its model directory does not say for which lmbda it was trained; wanted one")
  if quality is None:
    return distortion, known[None]
  rates = sorted(known)
  return distortion, float(np.exp(np.interp(quality, rates, np.log([known[rate] for rate in rates]))))


@functools.cache  # one object for all pictures, as jit tells functions apart by identity
def _loss_of(module, distortion: str) -> Loss:
  return functools.partial(_rate_distortion, module, distortion)


def _rate_distortion(module, distortion: str, variables, x, inside, quality, lmbda, y, z, quantiser, key) -> jax.Array:
  """bpp + lmbda * distortion, as in training, over the pixels of the picture (for MS-SSIM with its padding)."""
  rngs = {"noise": key} if quantiser.draw else {}
  out = module.apply(variables, y, z, quality, quantiser=quantiser, method="code", rngs=rngs)
  bpp = (out.y_bits.sum() + out.z_bits.sum()) / inside.sum()
  if distortion == "ms_ssim":
    return bpp + lmbda * (1 - ms_ssim(out.x_hat, x).mean())
  return bpp + lmbda * 255**2 * (jnp.square(out.x_hat - x) * inside).sum() / (3 * inside.sum())


def _true_loss(codec: Codec, image: np.ndarray, latents: Latents, distortion: str, lmbda: float) -> float:
  """Of the file that latents make, and of the 8-bit picture in it."""
  blob, picture = codec.encode_latents_with_reconstruction(latents)
  bpp = 8 * len(blob) / (latents.height * latents.width)
  if distortion == "ms_ssim":
    batch = [np.float32(each[None]) / 255 for each in (image, picture)]
    return bpp + lmbda * (1 - float(ms_ssim(*batch)[0]))
  return bpp + lmbda * mse(image, picture)
