"""LatentOptimizer: optimizes the latents of one image in the encoder. The decoder does not change.

LatentCoder codes optimized latents like any others: its passes round them and choose CDF rows and grids. `Codec`
encodes both the latents of the analysis transform and the optimized ones, and returns the file with the lower loss.
Latent optimization therefore never increases the loss of a file.
"""
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax import distortions
from mlic_jax.coding.latent_coder import LatentCoder
from mlic_jax.coding.latent_optimization import Gradient, LatentPair, refine
from mlic_jax.coding.latents import Latents
from mlic_jax.coding.memory_estimate import check_memory
from mlic_jax.coding.optimization_schedule import RefineError, Schedule
from mlic_jax.model.mlic import for_gradients
from mlic_jax.model.registry import PartError
from mlic_jax.runtime.shape_cache import ShapeCache

SEED = 0   # fixed, so the same image always gives the same file


class LatentOptimizer:
  """Optimizes latents for the objective that the model was trained for.

  The latents of the last image are cached: its file, estimate and bits use the same optimization.

  Args:
    coder: the model.
    schedule: the steps or seconds, temperatures and learning rates.
    lmbda: the weight of the distortion, in the scale of training. None uses that of the quality, interpolated
      geometrically between rate points.
  """

  def __init__(self, coder: LatentCoder, schedule: Schedule, lmbda: float | None = None):
    self.coder, self.schedule, self.lmbda = coder, schedule, lmbda
    self._last: tuple | None = None
    self._compiled_sizes: set[tuple[int, int]] = set()

  def objective(self, quality: float | None) -> tuple[str, float]:
    """Returns the distortion that the model was trained for and its weight at a quality. RefineError if unknown."""
    trained = (self.coder.training or {}).get("config") or {}
    distortion, quality = trained.get("distortion", "mse"), self.coder.choose_quality(quality)
    if self.lmbda is not None:
      return distortion, self.lmbda
    if quality is None and "lmbda" in trained:
      return distortion, trained["lmbda"]
    lmbdas = trained.get("lmbdas", ())
    if quality is None or len(lmbdas) != self.coder.config.num_rates:
      raise RefineError(f"{self.coder.name}: the model directory does not record the lmbda of the training; "
                        "wanted lmbda with refine")
    return distortion, float(np.exp(np.interp(quality, np.arange(1, len(lmbdas) + 1), np.log(lmbdas))))

  def check(self, height: int, width: int) -> None:
    """Raises MemoryLimitError or RefineError if the latents of an image of this size cannot be optimized."""
    check_memory(self.coder.config, height, width, latent_optimization=True)
    name, _ = self.objective(1 if self.coder.config.num_rates else None)
    if min(height, width) < (least := self._find(name).MIN_SIDE):
      raise RefineError(f"the image is {height}x{width}; {self.coder.name} was trained for {name}, which needs at "
                        f"least {least} pixels per side")

  def candidates(self, image: np.ndarray, quality: float | None,
                 progress: Callable[[float, float], None] = lambda done, loss: None) -> tuple[Latents, Latents]:
    """Returns the latents of the analysis transform for an image (H, W, 3) uint8, and the optimized ones."""
    quality = self.coder.choose_quality(quality)
    if self._last and self._last[0] == quality and np.array_equal(self._last[1], image):
      return self._last[2]
    height, width = image.shape[:2]
    self.check(height, width)
    start = self.coder.analyze(image, quality)
    pair: Any = start.y, start.z
    y, z = refine(pair, self.loss_of_latents(image, quality), jax.random.key(SEED), self.schedule,
                  progress, self.gradient_of_latents(image, quality))
    self._compiled_sizes.add(self.coder.z_size(height, width))
    self._last = quality, image.copy(), (start, start._replace(y=y, z=z))
    return self._last[2]

  def has_compiled(self, height: int, width: int) -> bool:
    """Whether latents of this padded size were optimized before."""
    return self.coder.z_size(height, width) in self._compiled_sizes

  def loss_of_file(self, image: np.ndarray, quality: float | None, blob: bytes, decoded: np.ndarray) -> float:
    """Returns bpp + lmbda * distortion of a file and its decoded 8-bit image, in the scale of training."""
    name, lmbda = self.objective(quality)
    x, x_hat = (np.float32(each[None]) / 255 for each in (image, decoded))
    bpp = 8 * len(blob) / (image.shape[0] * image.shape[1])
    return float(distortions.rate_distortion(bpp, lmbda, _compiled_distance(self._find(name))(x_hat, x)[0]))

  def loss_of_latents(self, image: np.ndarray, quality: float | None) -> jax.tree_util.Partial:
    """Returns the Loss to minimize for an image: bits by the likelihoods, distortion before rounding to 8 bits."""
    name, lmbda = self.objective(quality)
    x = self.coder.pad(image)
    inside = np.zeros((1, *x.shape[1:3], 1), np.float32)
    inside[:, :image.shape[0], :image.shape[1]] = 1
    return jax.tree_util.Partial(_bind(_rate_distortion, self.coder.module, self._find(name)), self.coder.variables,
                                 *jax.device_put((x, inside)), self.coder.choose_quality(quality), jnp.float32(lmbda))

  def gradient_of_latents(self, image: np.ndarray, quality: float | None) -> Gradient:
    """Returns the gradient of `loss_of_latents` with respect to y and z."""
    gradient = rate_distortion_gradient(self.coder.module, self._find(self.objective(quality)[0]))
    return jax.tree_util.Partial(gradient, *self.loss_of_latents(image, quality).args)

  def _find(self, name: str) -> ModuleType:
    """Returns a distortion. RefineError if there is none, or the caller of `load_model` did not allow it."""
    try:
      return distortions.find(name, self.coder.allow_custom_modules)
    except PartError as error:
      raise RefineError(f"{self.coder.name}: {error}") from None


@functools.cache
def _compiled_distance(distortion: ModuleType) -> ShapeCache:
  own = distortion.__name__.startswith(distortions.__name__)  # code of this package, so the program may be cached
  return ShapeCache(distortion.distance, size=0, describe=lambda _: distortion.__name__ if own else None)


def rate_distortion_gradient(module, distortion: ModuleType) -> Callable:
  """Returns a function (variables, x, inside, quality, lmbda, y, z, quantizer, key) -> gradient of the loss (y, z)."""
  return _bind(_gradient, module, distortion)


@functools.cache  # jit identifies functions by identity, so all images share one object
def _bind(function: Callable, module, distortion: ModuleType) -> Callable:
  return functools.partial(function, module, distortion)


def _gradient(module, distortion: ModuleType, variables, x, inside, quality, lmbda, y, z, quantizer, key) -> LatentPair:
  """As in training/step.py, the platform selects between two gradients, which traces faster than within the scan."""
  def gradient_of(module):
    rate_distortion: Callable[..., jax.Array] = functools.partial(_rate_distortion, module, distortion)
    return jax.grad(lambda latents, *others: rate_distortion(*others, *latents, quantizer, key))

  arguments = (y, z), variables, x, inside, quality, lmbda
  on_cpu, elsewhere = for_gradients(module, "cpu"), for_gradients(module, None)
  if on_cpu is elsewhere:
    return gradient_of(module)(*arguments)
  return jax.lax.platform_dependent(*arguments, cpu=gradient_of(on_cpu), default=gradient_of(elsewhere))


def _rate_distortion(module, distortion: ModuleType, variables, x, inside, quality, lmbda, y, z, quantizer,
                     key) -> jax.Array:
  """Returns the objective for x (1, H, W, 3) uint8; `inside` (1, H, W, 1) marks the pixels of the image."""
  x = x / 255
  rngs = {"noise": key} if quantizer.draw else {}
  out = module.apply(variables, y, z, quality, quantizer=quantizer, method="code", rngs=rngs)
  bpp = (out.y_bits.sum() + out.z_bits.sum()) / inside.sum()
  return distortions.rate_distortion(bpp, lmbda, distortion.distance(out.x_hat, x, inside)[0])
