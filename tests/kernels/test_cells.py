"""Convolutions and sums of 2x2 cells, against those of pixels."""
from functools import partial

import jax
import numpy as np
import pytest
from helpers.in_numpy import in_numpy

from mlic_jax.kernels import cells
from mlic_jax.kernels.convolution import KERNEL, BiasBroadcast, Convolution, conv_by_xla


def test_the_gradient_of_a_bias_before_a_shuffle_sums_every_position_once():
  of_image = np.random.default_rng(0).integers(-99, 99, (2, 3, 5, 24)).astype(np.float32)
  form = BiasBroadcast(((24,), of_image.shape), None, before_shuffle=True)
  np.testing.assert_array_equal(in_numpy(partial(form.on_other_platforms, 0))(of_image), of_image.sum((0, 1, 2)))


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_a_convolution_of_cells_is_that_of_pixels_with_stride_2(size):
  draw = lambda seed, *shape: np.float32(np.random.default_rng(seed).normal(size=shape))
  x, kernel = draw(0, 2, 6, 8, 3), draw(1, size, size, 3, 5)
  strided = lambda x, kernel: conv_by_xla(x, kernel, 2)
  expected = in_numpy(strided)(x, kernel)
  np.testing.assert_allclose(in_numpy(cells.conv_of_stride_2)(x, kernel), expected, rtol=1e-4, atol=1e-4)

  form = Convolution((x.shape, kernel.shape, expected.shape), None, 2)
  derivative = lambda index, *others: in_numpy(partial(form.on_other_platforms, index))(*others)
  np.testing.assert_allclose(derivative(2, x, kernel), expected, rtol=1e-4, atol=1e-4)
  transpose = lambda x, dy: jax.linear_transpose(partial(strided, x), kernel)(dy)[0]
  np.testing.assert_allclose(derivative(KERNEL, x, expected), in_numpy(transpose)(x, expected), rtol=1e-4, atol=1e-2)


def test_images_of_odd_sides_kernels_of_even_size_and_many_channels_are_left_to_xla():
  image, kernel = (1, 8, 8, 3), (3, 3, 3, 8)
  assert cells.is_suitable(image, kernel)
  assert not cells.is_suitable((1, 7, 8, 3), kernel) and not cells.is_suitable(image, (2, 2, 3, 8))
  assert not cells.is_suitable((1, 8, 8, 192), (3, 3, 192, 8)) and not cells.is_suitable(image, (3, 3, 1, 3))
