"""Tests of the transforms over blocks of 8x8 pixels."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.in_numpy import in_numpy

from mlic_jax.config import CodecConfig
from mlic_jax.model.layers import pixel_shuffle
from mlic_jax.model.transforms.unshuffled import STRIDE, Analysis, Synthesis, dct_basis, haar_basis, pixel_unshuffle

CONFIG = CodecConfig(M=64, num_slices=2, transforms="unshuffled", widths=(48, 64))


def test_unshuffling_is_the_inverse_of_shuffling():
  x = np.random.default_rng(0).normal(size=(2, 4, 6, 18)).astype(np.float32)
  np.testing.assert_array_equal(pixel_unshuffle(pixel_shuffle(x, 3), 3), x)


@pytest.mark.parametrize("basis", [dct_basis(192), dct_basis(40), haar_basis(12, 48), haar_basis(12, 20)])
def test_the_linear_start_is_orthonormal(basis):
  np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)


def test_the_first_frequencies_are_the_means_of_luma_and_chroma():
  gray, reddish = np.full((1, 8, 8, 3), 0.5), np.broadcast_to([0.5, 0.0, -0.5], (1, 8, 8, 3))
  coefficients = lambda x: np.asarray(pixel_unshuffle(x, 8))[0, 0, 0] @ dct_basis(192)
  assert np.argmax(np.abs(coefficients(gray))) == 0
  assert [np.count_nonzero(np.abs(coefficients(x)) > 1e-6) for x in (gray, reddish)] == [1, 1]


@pytest.mark.parametrize("token_expansion", [0, 1])
def test_a_training_starts_from_a_codec_that_keeps_the_low_frequencies(photograph, token_expansion):
  config = dataclasses.replace(CONFIG, options=dict(token_expansion=token_expansion))
  x = photograph[None, :64, :128].astype(np.float32) / 255
  start = lambda part, seed, x: in_numpy(part(config).init_with_output)(jax.random.key(seed), x)[0]
  y = start(Analysis, 0, x)
  assert y.shape == (1, 64 // STRIDE, 128 // STRIDE, CONFIG.M)
  x_hat = start(Synthesis, 1, y)
  low = np.mean(np.square(x - x.mean()))
  assert x_hat.shape == x.shape and np.mean(np.square(x_hat - x)) < 0.05 * low
