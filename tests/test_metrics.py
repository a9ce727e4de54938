"""Tests of PSNR against its formula, of MS-SSIM against TensorFlow, and of images without a value."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.metrics import (
  MS_SSIM_DB_MAX,
  MS_SSIM_MIN_SIDE,
  PSNR_MAX,
  ms_ssim,
  ms_ssim_8bit,
  ms_ssim_db,
  mse,
  psnr,
  psnr_of_mse,
)

rng = np.random.default_rng(0)


def photograph_like(height, width):
  """Smooth blobs with some noise, (height, width, 3) uint8."""
  rows, columns = np.mgrid[:height, :width][..., None] / 20
  phase = np.array([0, 1, 2])
  smooth = 127 + 90 * np.sin(rows + phase) * np.cos(columns * 0.7 + phase)
  return np.clip(smooth + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def noisy(image, sigma):
  return np.clip(image + rng.normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


IMAGE = photograph_like(177, 190)


def test_psnr_is_over_all_samples_of_the_three_channels():
  other = np.zeros((2, 2, 3), np.uint8)
  other[0, 0] = 1, 2, 3                                  # mse = (1 + 4 + 9) / 12
  assert psnr(np.zeros_like(other), other) == pytest.approx(10 * math.log10(255**2 * 12 / 14))
  assert psnr(other, np.zeros_like(other)) == psnr(np.zeros_like(other), other)
  assert psnr(np.zeros_like(other), np.full_like(other, 255)) == 0


def test_equal_images_have_finite_dB():
  assert psnr(IMAGE, IMAGE) == PSNR_MAX and ms_ssim_db(1.0) == MS_SSIM_DB_MAX
  assert ms_ssim_db(1 + 1e-7) == MS_SSIM_DB_MAX          # rounding can go a little beyond


def test_psnr_is_of_the_squared_error_in_8_bit_levels():
  other = IMAGE.copy()
  other[::2] ^= 1                                        # half of the rows, and one more, by one level
  assert mse(IMAGE, other) == pytest.approx(89 / 177)
  assert psnr(IMAGE, other) == psnr_of_mse(89 / 177) == pytest.approx(51.117, abs=1e-3)


@pytest.mark.parametrize("value, db", [(0.0, 0.0), (0.9, 10.0), (0.99, 20.0), (0.95, 13.0103)])
def test_ms_ssim_in_db_counts_what_is_missing_to_one(value, db):
  assert ms_ssim_db(value) == pytest.approx(db, abs=1e-4)


def test_psnr_agrees_with_tensorflow(tensorflow):
  for other in noisy(IMAGE, 5), noisy(IMAGE, 50):
    assert psnr(IMAGE, other) == pytest.approx(float(tensorflow.image.psnr(IMAGE, other, max_val=255)), abs=1e-4)


def test_metrics_refuse_floats_and_other_shapes():
  for metric in (psnr, ms_ssim_8bit):
    with pytest.raises(AssertionError):
      metric(IMAGE, IMAGE / np.float32(255))
    with pytest.raises(AssertionError):
      metric(IMAGE, IMAGE[:-1])


def test_ms_ssim_agrees_with_tensorflow(tensorflow):
  x = np.stack([IMAGE] * 4) / np.float32(255)
  distorted = [IMAGE, noisy(IMAGE, 10), noisy(IMAGE, 60), np.clip(IMAGE * 0.5, 0, 255).astype(np.uint8)]
  y = np.stack(distorted) / np.float32(255)
  theirs = tensorflow.image.ssim_multiscale(x, y, max_val=1.0).numpy()
  np.testing.assert_allclose(jax.jit(ms_ssim)(x, y), theirs, atol=1e-4)


def test_ms_ssim_of_equal_images_is_one_and_falls_with_noise():
  values = [ms_ssim_8bit(IMAGE, other) for other in (IMAGE, noisy(IMAGE, 10), noisy(IMAGE, 40))]
  assert values[0] == pytest.approx(1, abs=1e-6)
  assert values[0] > values[1] > values[2] > 0


@jax.jit
def value_and_gradient(x, y):
  return jax.value_and_grad(lambda y: ms_ssim(x, y).sum())(y)


def test_ms_ssim_of_opposite_images_is_zero_and_no_gradient_is_nan():
  x = jnp.asarray(IMAGE[None], jnp.float32) / 255
  value, gradient = value_and_gradient(x, 1 - x)
  assert value == 0
  assert np.isfinite(gradient).all()


def test_the_gradient_of_ms_ssim_predicts_its_change():
  x = jnp.asarray(IMAGE[None], jnp.float32) / 255
  y = jnp.asarray(noisy(IMAGE, 20)[None], jnp.float32) / 255
  step = jnp.asarray(rng.normal(0, 1e-2, y.shape), jnp.float32)
  (_, gradient), (above, _), (below, _) = (value_and_gradient(x, each) for each in (y, y + step, y - step))
  assert float(above - below) == pytest.approx(float(2 * (gradient * step).sum()), rel=0.02)


def test_an_image_too_small_for_five_scales_has_no_ms_ssim():
  enough = photograph_like(MS_SSIM_MIN_SIDE, MS_SSIM_MIN_SIDE)
  assert ms_ssim_8bit(enough, enough) == pytest.approx(1, abs=1e-6)
  assert ms_ssim_8bit(enough[1:], enough[1:]) is None
  with pytest.raises(ValueError, match="175x176 pixels for MS-SSIM; wanted at least 176"):
    ms_ssim(enough[None, 1:] / 255, enough[None, 1:] / 255)
