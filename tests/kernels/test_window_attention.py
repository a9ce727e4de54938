"""Windows in the lanes of a TPU: against windows in arrays of their own, and attention in them against softmax."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.in_numpy import in_numpy

from mlic_jax.kernels.window_attention import (
  anchors_in_lanes,
  attend_in_lanes,
  images_of_windows,
  strips_of,
  windows_in_lanes,
)
from mlic_jax.model.checkerboard import anchor_mask
from mlic_jax.model.contexts.local_attention import nonanchor_windows

HEADS, CHANNELS = 2, 3
# One strip, strips beyond the image, strips of two rows that are wider than the lanes, an odd number of rows.
SIDES = pytest.mark.parametrize("h, w, size, strips", [(4, 6, 3, 1), (34, 16, 5, 3), (4, 130, 3, 2), (5, 80, 3, 3)])


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@SIDES
def test_windows_are_those_around_the_nonanchors(h, w, size, strips):
  assert strips_of(h, w)[0] == strips
  x = normal(0, 2, h, w, CHANNELS, HEADS)
  found, wanted = in_numpy(lambda x: (
      images_of_windows(windows_in_lanes(x, size), HEADS, h, w),
      nonanchor_windows(x.swapaxes(-2, -1).reshape(2, h, w, -1), size)))(x)
  np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)


@SIDES
def test_anchors_are_those_of_the_checkerboard_inside_the_image(h, w, size, strips):
  found = anchors_in_lanes(h, w, size)
  windows = in_numpy(lambda: windows_in_lanes(anchor_mask(h, w).astype(jnp.float32)[None, ..., None, None], size))()
  np.testing.assert_array_equal(found, windows[0])


@pytest.mark.parametrize("h, w", [(16, 16), (24, 24), (32, 32), (48, 32), (8, 8)])
def test_strips_are_equal_and_fill_the_lanes(h, w):
  strips, rows = strips_of(h, w)
  assert rows % 2 == 0 and strips * rows == h and (strips == 1 or rows * w // 2 > 64)


def test_weights_are_the_softmax_over_the_keys_of_scores_and_biases():
  q, k, v = (normal(seed, CHANNELS, 9, 4, 5) for seed in range(3))
  biases = 50 * normal(3, 9, 9, 4, 5)  # large ones would overflow without the maximum

  def expected(q, k, v, biases):
    weights = jax.nn.softmax(jnp.einsum("dknl,dqnl->kqnl", k, q) + biases, axis=0)
    return jnp.einsum("kqnl,dknl->dqnl", weights, v)

  def gradient(function):
    return in_numpy(jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(function(*args))), (0, 1, 2, 3)))(q, k, v, biases)

  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, gradient(attend_in_lanes), gradient(expected))
