"""PSNR and MS-SSIM of 8-bit RGB images, and a differentiable MS-SSIM for training.

`mse`, `psnr` and `ms_ssim_8bit` take 8-bit images (H, W, 3) uint8 and return a number. `ms_ssim` takes batches
(B, H, W, 3) of floats in [0, 1] and is differentiable and jittable. Two conventions exist for a mean over images, and
they differ: the mean of the dB of all images, and the dB of the mean. `psnr_of_mse` and `ms_ssim_db` convert to dB.
"""
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.kernels.multilinear import Form
from mlic_jax.runtime.shape_cache import ShapeCache

# Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003
SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333], np.float32)
WINDOW_SIZE, WINDOW_SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2                                # K1, K2 of the paper, at a dynamic range of 1
MS_SSIM_MIN_SIDE = WINDOW_SIZE * 2**(len(SCALE_WEIGHTS) - 1)   # 176: one window fits the coarsest scale

PSNR_MAX = 100.0      # dB of two equal images, so that a mean over images is finite
MS_SSIM_DB_MAX = 100.0


def mse(image: np.ndarray, reconstruction: np.ndarray) -> float:
  """Return the mean squared error of two (H, W, 3) uint8 images over all samples, in 8-bit levels."""
  _check_8bit(image, reconstruction)
  difference = image.astype(np.int32) - reconstruction
  return float(np.mean(np.square(difference), dtype=np.float64))


def psnr_of_mse(error: float) -> float:
  """Return the PSNR in dB of a mean squared error in 8-bit levels; at most PSNR_MAX."""
  return float(min(PSNR_MAX, 10 * np.log10(255**2 / error))) if error else PSNR_MAX


def psnr(image: np.ndarray, reconstruction: np.ndarray) -> float:
  """Return the PSNR in dB of two (H, W, 3) uint8 images; at most PSNR_MAX."""
  return psnr_of_mse(mse(image, reconstruction))


def ms_ssim_db(ms_ssim: float) -> float:
  """Return MS-SSIM in dB, -10 log10(1 - MS-SSIM); at most MS_SSIM_DB_MAX."""
  distance = 1 - ms_ssim
  return float(min(MS_SSIM_DB_MAX, -10 * np.log10(distance))) if distance > 0 else MS_SSIM_DB_MAX


def ms_ssim_8bit(image: np.ndarray, reconstruction: np.ndarray) -> float | None:
  """Return the MS-SSIM of two (H, W, 3) uint8 images; None if a side is below MS_SSIM_MIN_SIDE (176 pixels).

  Five scales do not fit into smaller images, and values of fewer scales or of padded images are not comparable.
  """
  _check_8bit(image, reconstruction)
  if min(image.shape[:2]) < MS_SSIM_MIN_SIDE:
    return None
  return float(_cached_ms_ssim(*(np.float32(each[None]) / 255 for each in (image, reconstruction)))[0])


def _check_8bit(image: np.ndarray, reconstruction: np.ndarray) -> None:
  chex.assert_type([image, reconstruction], np.uint8)    # floats in [0, 1] would give a plausible number
  chex.assert_equal_shape([image, reconstruction])
  chex.assert_shape(image, (None, None, 3))


def ms_ssim(x: jax.Array, y: jax.Array) -> jax.Array:
  """Return the MS-SSIM (B,) of two batches (B, H, W, 3) in [0, 1]. ValueError for sides below MS_SSIM_MIN_SIDE.

  For each channel it is the product over scales of contrast-structure (times luminance at the coarsest scale), each to
  the power of its weight. The result is the mean over channels, as in tf.image.ssim_multiscale. A channel with a factor
  that is not positive counts as 0 with gradient 0, so neither is NaN.
  """
  chex.assert_equal_shape([x, y])
  chex.assert_shape(x, (None, None, None, 3))
  if min(x.shape[1:3]) < MS_SSIM_MIN_SIDE:
    raise ValueError(f"got images of {x.shape[1]}x{x.shape[2]} pixels for MS-SSIM; wanted at least "
                     f"{MS_SSIM_MIN_SIDE} on each side")
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  of_scales = []
  for scale in range(len(SCALE_WEIGHTS)):
    if scale:
      x, y = _halve(x), _halve(y)
    luminance, contrast_structure = _ssim_maps(x, y)
    coarsest = scale == len(SCALE_WEIGHTS) - 1
    of_scales.append(jnp.mean(luminance * contrast_structure if coarsest else contrast_structure, axis=(1, 2)))
  factors = jnp.stack(of_scales, axis=-1)                # (B, 3, scales)
  positive = factors > 1e-6                              # the slope of v**0.0448 is unbounded at 0
  powers = jnp.where(positive, jnp.where(positive, factors, 1.0)**SCALE_WEIGHTS, 0.0)
  return jnp.mean(jnp.prod(powers, axis=-1), axis=-1)


_cached_ms_ssim = ShapeCache(ms_ssim, size=0)


def _ssim_maps(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return luminance and contrast-structure of SSIM at every position of the window inside the image."""
  moments = _gaussian_window(jnp.concatenate([x, y, x * y, x**2 + y**2]))
  mean_x, mean_y, mean_xy, mean_squares = jnp.split(moments, 4)
  product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
  luminance = (2 * product + C1) / (squares + C1)
  contrast_structure = (2 * (mean_xy - product) + C2) / (mean_squares - squares + C2)
  return luminance, contrast_structure


def _gaussian_window(x: jax.Array) -> jax.Array:
  """Return the Gaussian mean of every window inside the image, (B, H, W, C) -> (B, H-10, W-10, C)."""
  b, h, w, c = x.shape
  return _GaussianWindow((x.shape, (b, h - WINDOW_SIZE + 1, w - WINDOW_SIZE + 1, c)))(x)


@dataclasses.dataclass(frozen=True)
class _GaussianWindow(Form):
  """Weighted sum of shifted copies, in float32 on every device, and much faster on CPU than a convolution.

  The window is symmetric, so the transpose is the same sum after padding. XLA's transpose is slow."""

  def derivative(self, index: int, on_cpu: bool, *others: jax.Array) -> jax.Array:
    x, = others
    if index == 0:
      margin = (WINDOW_SIZE - 1, WINDOW_SIZE - 1)
      x = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
    offsets = np.arange(WINDOW_SIZE) - (WINDOW_SIZE - 1) / 2
    window = np.exp(-offsets**2 / (2 * WINDOW_SIGMA**2))
    for axis in (1, 2):
      size = x.shape[axis] - WINDOW_SIZE + 1
      x = jnp.asarray(sum(jax.lax.slice_in_dim(x, i, i + size, axis=axis) * float(weight)
                          for i, weight in enumerate(window / window.sum())))
    return x


def _halve(x: jax.Array) -> jax.Array:
  """Return means of 2x2 pixels; an odd last row or column is repeated, as in tf.image."""
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
  return jnp.mean(x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c), axis=(2, 4))
