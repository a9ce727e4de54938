"""Tests of the objective, against numbers computed by hand."""
import functools

import jax
import numpy as np
import pytest

from mlic_jax.metrics import ms_ssim
from mlic_jax.model.mlic import CodecOutput
from mlic_jax.training import losses

pytestmark = pytest.mark.usefixtures("as_shipped")  # sums of pixels, to five digits
rd_loss = jax.jit(losses.rd_loss, static_argnames=("distortion", "cell"))


def output(x_hat, bits_per_element=0.5):
  b, height, width, _ = x_hat.shape
  y_bits = np.full((b, height // 16, width // 16, 8), bits_per_element, np.float32)
  z_bits = np.full((b, height // 64, width // 64, 4), 1.0, np.float32)
  return CodecOutput(x_hat, y_bits, y_bits, z_bits)


def test_rate_is_bits_over_pixels_of_the_image():
  x = np.zeros((2, 64, 128, 3), np.float32)
  loss, metrics = rd_loss(output(x), x, 0.01)
  np.testing.assert_allclose(metrics["bpp_y"], 4 * 8 * 8 * 0.5 / (64 * 128))
  np.testing.assert_allclose(metrics["bpp_z"], 2 * 4 / (64 * 128))
  np.testing.assert_allclose(loss, metrics["bpp_y"] + metrics["bpp_z"])  # no distortion


def test_every_sample_has_its_own_lmbda():
  x = np.zeros((2, 64, 64, 3), np.float32)
  lmbda = np.float32([0.0018, 0.0483])
  loss, metrics = rd_loss(output(x + 0.1), x, lmbda)
  np.testing.assert_allclose(metrics["mse"], 0.01, rtol=1e-5)
  np.testing.assert_allclose(metrics["psnr"], 20.0, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"] - metrics["bpp"], 255**2 * lmbda * 0.01, rtol=1e-5)
  np.testing.assert_allclose(loss, metrics["loss"].mean(), rtol=1e-6)


def test_a_perfect_reconstruction_has_a_finite_psnr():
  x = np.zeros((1, 64, 64, 3), np.float32)
  assert np.isfinite(rd_loss(output(x), x, 0.01)[1]["psnr"]).all()


@pytest.mark.parametrize("distortion", ["mse", "ms_ssim"])
def test_cells_of_pixels_have_the_loss_and_the_gradient_of_pixels(distortion):
  x, x_hat, target = np.random.default_rng(0).uniform(size=(3, 2, 192, 192, 3)).astype(np.float32)

  @functools.partial(jax.jit, static_argnums=1)
  def loss_and_gradient(x_hat, cell):
    return jax.value_and_grad(lambda x_hat: rd_loss(output(x_hat), x, 0.01, distortion, target, cell)[0])(x_hat)

  of_pixels, of_cells = (loss_and_gradient(x_hat, cell) for cell in (1, 2))
  for expected, found in zip(of_pixels, of_cells):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_ms_ssim_is_a_distortion_too():
  x = np.random.default_rng(0).uniform(size=(1, 192, 192, 3)).astype(np.float32)
  x_hat = 0.5 * x
  _, metrics = rd_loss(output(x_hat), x, 8.73, "ms_ssim")
  np.testing.assert_allclose(metrics["loss"] - metrics["bpp"], 8.73 * (1 - jax.jit(ms_ssim)(x_hat, x)), rtol=1e-4)


def test_a_target_takes_the_place_of_the_image_in_the_loss_alone():
  x = np.zeros((1, 64, 64, 3), np.float32)
  _, metrics = rd_loss(output(x + 0.1), x, 0.01, target=x + 0.3)
  np.testing.assert_allclose(metrics["mse"], 0.01, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"] - metrics["bpp"], 255**2 * 0.01 * 0.04, rtol=1e-5)


def test_an_unknown_distortion_is_refused_with_what_there_is():
  x = np.zeros((1, 64, 64, 3), np.float32)
  with pytest.raises(ValueError, match="no distortion 'lpips' in mlic_jax/distortions/; the nearest is .*ms_ssim"):
    rd_loss(output(x), x, 0.01, "lpips")
