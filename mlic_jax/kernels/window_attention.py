"""Attention inside the windows around non-anchors, with the windows in the lanes of a TPU.

A window has 25 positions and a head has 16 channels or so. A TPU pads the last axis of an array to 128 lanes, and its
matrix units compute mostly zeros for products of such sizes. Here lane i of every array belongs to window i:

    queries, keys, values    (channels of a head, positions of a window, heads * B * strips, windows of a strip)
    scores                   (keys, queries, heads * B * strips, windows of a strip)

A strip is a number of rows of an image with about 128 windows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.kernels.layouts import LANES, stored
from mlic_jax.kernels.vector_products import contract, total


def strips_of(h: int, w: int) -> tuple[int, int]:
  """Returns the number of strips of an image of (h, w), w even, and the rows of each, which are even.

  The last strip may go beyond the image."""
  strips = -(-h // max(2, 2 * (LANES // w)))
  return strips, 2 * -(-h // (2 * strips))


def windows_in_lanes(x: jax.Array, size: int) -> jax.Array:
  """Returns the window around each non-anchor, zero-padded.

  Args:
    x: (B, h, w, channels, heads), w even.
    size: rows and columns of a window, odd.

  Returns:
    (channels, size^2, heads * B * strips, windows of a strip). The windows are in the order of `checkerboard.pack`.
  """
  b, h, w, channels, heads = x.shape
  strips, rows = strips_of(h, w)
  above, below = size // 2, size // 2 + strips * rows - h
  selection = window_selection(rows, w, size)
  if strips == 1:  # without the rows of zeros
    selection = selection[above * w:][:h * w]
  else:
    x = jnp.pad(x, ((0, 0), (above, below), (0, 0), (0, 0), (0, 0)))
    x = jnp.stack([x[:, first:first + rows + 2 * above] for first in range(0, strips * rows, rows)], axis=1)
  x = stored(x.reshape(b, strips, -1, channels, heads).transpose(3, 4, 0, 1, 2))
  x = x.reshape(channels, heads * b * strips, -1)
  # A product with zeros and ones is faster than slices of lanes. It is exact, in half the passes, because XLA knows
  # that a number of a smaller type has no lower bits.
  ones = jnp.asarray(selection, jnp.bfloat16).astype(x.dtype)
  return stored(jnp.einsum("cmi,inp->cnmp", x, ones))


def images_of_windows(x: jax.Array, heads: int, h: int, w: int) -> jax.Array:
  """Returns (channels, size^2, heads * B * strips, windows of a strip) as (B, h, w/2, size^2, heads, channels)."""
  channels, positions = x.shape[:2]
  strips, rows = strips_of(h, w)
  x = x.reshape(channels, positions, heads, -1, strips, rows, w // 2).transpose(3, 4, 5, 6, 1, 2, 0)
  return x.reshape(-1, strips * rows, w // 2, positions, heads, channels)[:, :h]


@functools.lru_cache
def window_selection(rows: int, w: int, size: int) -> np.ndarray:
  """Returns which input of a strip is where in which window, as zeros and ones.

  Returns:
    ((rows + 2 (size // 2)) * w, size^2, rows * w/2) bool. Non-anchors have an even row + column.
  """
  around = size // 2
  y, pair = np.divmod(np.arange(rows * w // 2), w // 2)
  x = 2 * pair + y % 2
  selection = np.zeros((rows + 2 * around, w, size, size, rows * w // 2), bool)
  for down, right in np.ndindex(size, size):
    column = x + right - around
    inside = np.flatnonzero((0 <= column) & (column < w))
    selection[y[inside] + down, column[inside], down, right, inside] = True
  return selection.reshape(-1, size**2, rows * w // 2)


def anchors_in_lanes(h: int, w: int, size: int) -> np.ndarray:
  """Returns (size^2, strips, windows of a strip) bool, which positions of windows are anchors inside the image."""
  (strips, rows), around = strips_of(h, w), size // 2
  anchors = np.zeros((strips * rows + 2 * around, w), bool)
  anchors[around:around + h] = np.indices((h, w)).sum(0) % 2 == 1
  of_strips = np.stack([anchors[first:first + rows + 2 * around].ravel() for first in range(0, strips * rows, rows)])
  return np.einsum("si,inp->nsp", of_strips, window_selection(rows, w, size))


def attend_in_lanes(q: jax.Array, k: jax.Array, v: jax.Array, biases: jax.Array) -> jax.Array:
  """Returns softmax(k^T q + biases) v inside each window.

  Args:
    q, k, v: (channels, positions, n, lanes), as `windows_in_lanes` returns them.
    biases: (keys, queries, n, lanes).

  Returns:
    (channels, positions, n, lanes).
  """
  scores = contract(k, q) + biases
  highest = functools.reduce(jnp.maximum, jax.lax.stop_gradient(scores))
  exponentials = jnp.exp(scores - highest)
  # The results are divided by the sums. There are more weights than results, and a gradient would keep all of them.
  inverse = 1 / total(exponentials)
  attended = contract(v.swapaxes(0, 1), exponentials)
  return contract(attended[None], inverse[None, None])[:, 0]
