"""RefinedCodec: files of refined latents. It costs the encoder time, and the decoder nothing.

Rounding, table rows and the choices of portable files are left to the ordinary passes, which code the refined latents
as any others. Of the two files, plain and refined, the one of lower loss is given.
"""
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.coding.codec import Codec
from mlic_jax.coding.latent_optimization import Gradient, Loss, Pair, RefineError, Schedule, refine
from mlic_jax.coding.latents import Latents
from mlic_jax.coding.memory_estimate import check_memory
from mlic_jax.data.image_io import AnyPicture, as_picture
from mlic_jax.metrics import MS_SSIM_MIN_SIDE, ms_ssim, ms_ssim_8bit, mse
from mlic_jax.model.mlic import unrolled_and_rolled

SEED = 0   # of the random choices: the same picture gives the same file


class RefinedCodec(Codec):
  """What `Codec.refining` gives: a codec that refines the latents of every picture that it encodes or estimates.

  Args:
    plain: the codec; everything but the latents is its own.
    schedule: or steps, or a time as "50s".
    lmbda: weight of the distortion, in the scale of training; None for that of the quality, geometric between rates.
    progress: as in `refine`.

  The latents of the last picture are kept: its file, its estimate and its bits come from one refinement. Besides the
  errors of a Codec, RefineError when no lmbda came and the model directory has none, or for a time that is too short.
  """

  def __init__(self, plain: Codec, schedule: Schedule | int | str, lmbda: float | None = None,
               progress: Callable[[float, float], None] = lambda done, loss: None):
    vars(self).update(vars(plain))
    self.plain, self.schedule, self.lmbda, self.progress = plain, Schedule.of(schedule), lmbda, progress
    self.name = f"{plain.name}, refined {self.schedule}{'' if lmbda is None else f' for {lmbda:g}'}"
    self._last, self._blocks_met = None, set()
    self.objective(self.qualities[0])

  def of_one_step(self) -> "RefinedCodec":
    """The same for a single step: it compiles what this one runs."""
    return RefinedCodec(self.plain, dataclasses.replace(self.schedule, steps=1, seconds=None), self.lmbda)

  def encode(self, image: AnyPicture, quality: float | None = None, icc_profile: bytes | None = None,
             chunked: bool = True, portable: bool = True) -> bytes:
    """As `Codec.encode`."""
    return self.encode_with_reconstruction(image, quality, icc_profile, chunked, portable)[0]

  def encode_with_reconstruction(self, image: AnyPicture, quality: float | None = None,
                                 icc_profile: bytes | None = None, chunked: bool = True,
                                 portable: bool = True) -> tuple[bytes, np.ndarray]:
    """As `Codec.encode_with_reconstruction`."""
    image, own_profile, _ = as_picture(image)
    files = [self.encode_latents_with_reconstruction(latents, icc_profile or own_profile, chunked, portable)
             for latents in self._plain_and_refined(image, quality)]
    return min(files, key=lambda file: self.loss(image, quality, *file))

  def has_compiled(self, height: int, width: int) -> bool:
    """As `Codec.has_compiled`, of what refining needs besides."""
    return self._blocks(height, width) in self._blocks_met and self.plain.has_compiled(height, width)

  def latents(self, image: AnyPicture, quality: float | None = None) -> Latents:
    """What is coded of a picture: the refined latents, or the plain ones where their file is better."""
    image = as_picture(image).image
    return min(self._plain_and_refined(image, quality),
               key=lambda latents: self.loss(image, quality, *self.encode_latents_with_reconstruction(latents)))

  def loss(self, image: AnyPicture, quality: float | None, blob: bytes, picture: np.ndarray) -> float:
    """Of a file and the 8-bit picture in it: bpp + lmbda * distortion, as in training."""
    image, (distortion, lmbda) = as_picture(image).image, self.objective(quality)
    error = mse(image, picture) if distortion == "mse" else 1 - ms_ssim_8bit(image, picture)
    return 8 * len(blob) / (image.shape[0] * image.shape[1]) + lmbda * error

  def loss_of_latents(self, image: AnyPicture, quality: float | None) -> Loss:
    """What is minimised for a picture: bits by the likelihoods, distortion before it is 8 bits."""
    image, (distortion, lmbda) = as_picture(image).image, self.objective(quality)
    x = self._pad(image)
    inside = np.zeros((1, *x.shape[1:3], 1), np.float32)
    inside[:, :image.shape[0], :image.shape[1]] = 1
    return jax.tree_util.Partial(_of(_rate_distortion, self._module, distortion), self.variables,
                                 *jax.device_put((x, inside)), self.choose_quality(quality), jnp.float32(lmbda))

  def gradient_of_latents(self, image: AnyPicture, quality: float | None) -> Gradient:
    """That of loss_of_latents."""
    gradient = rate_distortion_gradient(self._module, self.objective(quality)[0])
    return jax.tree_util.Partial(gradient, *self.loss_of_latents(image, quality).args)

  def objective(self, quality: float | None) -> tuple[str, float]:
    """The distortion that the codec was trained for, and its weight at a quality. RefineError when none is known."""
    trained = (self.training or {}).get("config") or {}
    distortion, quality = trained.get("distortion", "mse"), self.choose_quality(quality)
    if self.lmbda is not None:
      if not 0 < self.lmbda < np.inf:
        raise RefineError(f"lmbda={self.lmbda}; wanted a number above 0")
      return distortion, self.lmbda
    if quality is None and "lmbda" in trained:
      return distortion, trained["lmbda"]
    lmbdas = trained.get("lmbdas", ())
    if quality is None or len(lmbdas) != self.config.num_rates:
      raise RefineError(f"{self.plain.name}: its model directory does not say for which lmbda it was trained; "
                        "wanted one")
    return distortion, float(np.exp(np.interp(quality, np.arange(1, len(lmbdas) + 1), np.log(lmbdas))))

  def check(self, height: int, width: int) -> None:
    """MemoryLimitError or RefineError for a picture that cannot be refined, before the work."""
    check_memory(self.config, height, width, refining=True)
    if self.objective(self.qualities[0])[0] == "ms_ssim" and min(height, width) < MS_SSIM_MIN_SIDE:
      raise RefineError(f"a picture of {height}x{width}; {self.plain.name} was trained for MS-SSIM, which wants at "
                        f"least {MS_SSIM_MIN_SIDE} pixels a side")

  def _plain_and_refined(self, image: np.ndarray, quality: float | None) -> tuple[Latents, Latents]:
    quality = self.choose_quality(quality)
    if self._last and self._last[0] == quality and np.array_equal(self._last[1], image):
      return self._last[2]
    height, width = image.shape[:2]
    self.check(height, width)
    plain = self.plain.latents(image, quality)
    y, z = refine((plain.y, plain.z), self.loss_of_latents(image, quality), jax.random.key(SEED), self.schedule,
                  self.progress, self.gradient_of_latents(image, quality))
    self._blocks_met.add(self._blocks(height, width))
    self._last = quality, image.copy(), (plain, plain._replace(y=y, z=z))
    return self._last[2]


def rate_distortion_gradient(module, distortion: str) -> Callable:
  """(variables, x, inside, quality, lmbda, y, z, quantiser, key) -> the gradient of the loss by y and z."""
  return _of(_gradient, module, distortion)


@functools.cache  # one object for all pictures, as jit tells functions apart by identity
def _of(function: Callable, module, distortion: str) -> Callable:
  return functools.partial(function, module, distortion)


def _gradient(module, distortion: str, variables, x, inside, quality, lmbda, y, z, quantiser, key) -> Pair:
  """As in training/step.py, the choice of how to walk is made around the gradient, which is traced sooner."""
  def of(module):
    loss = lambda latents, *others: _rate_distortion(module, distortion, *others, *latents, quantiser, key)
    return jax.grad(loss)

  arguments, (at_once, rolled) = ((y, z), variables, x, inside, quality, lmbda), unrolled_and_rolled(module)
  if at_once is rolled:
    return of(module)(*arguments)
  return jax.lax.platform_dependent(*arguments, cpu=of(at_once), default=of(rolled))


def _rate_distortion(module, distortion: str, variables, x, inside, quality, lmbda, y, z, quantiser, key) -> jax.Array:
  """bpp + lmbda * distortion of x (1, H, W, 3) uint8, over the pixels `inside` (1, H, W, 1) of the picture; MS-SSIM is
  that of the padded one."""
  x = x / 255
  rngs = {"noise": key} if quantiser.draw else {}
  out = module.apply(variables, y, z, quality, quantiser=quantiser, method="code", rngs=rngs)
  bpp = (out.y_bits.sum() + out.z_bits.sum()) / inside.sum()
  if distortion == "ms_ssim":
    return bpp + lmbda * (1 - ms_ssim(out.x_hat, x).mean())
  return bpp + lmbda * 255**2 * (jnp.square(out.x_hat - x) * inside).sum() / (3 * inside.sum())
