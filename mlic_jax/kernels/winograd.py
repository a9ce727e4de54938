"""3x3 convolutions with half the multiplications: Winograd's minimal filtering along the height, for CPU.

Four rows of the output take six convolutions of a row with three taps, where a plain convolution takes twelve
(Winograd, Arithmetic Complexity of Computations, 1980; Lavin & Gray, CVPR 2016, there in both dimensions):

    y = OUTPUT [(KERNEL k) * (INPUT x)]         * convolves rows; the matrices act on the height

    x   six rows, of which the next six begin four below      k   three rows      y   four rows

On two cores that is 1.5 to 1.8 times as fast as a plain convolution. Filtering the width as well takes half of the
multiplications again, but no less time, as the sums around the products grow, and has several times the rounding error.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.kernels.padding import zero_pad

ROWS = 4          # of the output at a time
ROWS_IN = ROWS + 2
# Where the product of polynomials that stands for the convolution is sampled, and at infinity. With the usual 0, +-1,
# +-2 the rounding error is three times that of a plain convolution, with these twice.
POINTS = (0, 0.75, -0.75, 1.5, -1.5)
# With fewer channels, in or out, the sums outweigh the products. Where h and w are small, the gain is small, and not
# worth the time to compile ten slices of it in a training step. The batch does not count, and changes no picture.
CHANNELS_MIN, POSITIONS_MIN = 32, 1024


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """OUTPUT (4, 6), KERNEL (6, 3) and INPUT (6, 6), by Toom and Cook: sample two polynomials, multiply, interpolate."""
  sample = lambda terms: np.vstack([np.vander(POINTS, terms, increasing=True), np.eye(terms)[-1]])
  return sample(ROWS).T, sample(3), np.linalg.inv(sample(ROWS_IN)).T.round(12)


OUTPUT, KERNEL, INPUT = _matrices()


def suits(x: jax.Array, kernel_shape: tuple[int, ...]) -> bool:
  """Whether x (B, H, W, C) and kernel (size, size, C, features) can be convolved so, with stride 1, and it pays.

  bfloat16 has too few bits for the sums."""
  _, h, w, _ = x.shape
  pays = h * w >= POSITIONS_MIN and min(kernel_shape[2:]) >= CHANNELS_MIN
  return kernel_shape[:2] == (3, 3) and h % ROWS == 0 and x.dtype == jnp.float32 and pays


@jax.jit  # traced once for each shape: a model has the same ones again and again
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """(B, H, W, C) with kernel (3, 3, C, features) -> (B, H, W, features), zeros around; H a multiple of 4."""
  convolve = lambda rows, taps: jax.lax.conv_general_dilated(
      rows, taps, (1, 1), ((0, 0), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
  products = map(convolve, input_rows(x), _combine(KERNEL, [kernel[i:i + 1] for i in range(3)]))
  return jnp.stack(_combine(OUTPUT, list(products)), axis=2).reshape(*x.shape[:3], -1)


def input_rows(x: jax.Array) -> list[jax.Array]:
  """INPUT x: six times (B, H/4, W, C)."""
  b, h, w, c = x.shape
  x = zero_pad(x, (1, ROWS - 1), (0, 0)).reshape(b, h // ROWS + 1, ROWS, w, c)
  return _combine(INPUT, [x[:, i // ROWS:i // ROWS + h // ROWS, i % ROWS] for i in range(ROWS_IN)])


def product_gradients(dy: jax.Array) -> list[jax.Array]:
  """What dy (B, H, W, features) is to the six products: (B, H/4, W, features) each."""
  b, h, w, c = dy.shape
  dy = dy.reshape(b, h // ROWS, ROWS, w, c)
  return _combine(OUTPUT.T, [dy[:, :, i] for i in range(ROWS)])


def kernel_gradient(of_taps: list[jax.Array]) -> jax.Array:
  """(3, 3, C, features), from the gradients of the kernels of the six products (1, 3, C, features)."""
  return jnp.concatenate(_combine(KERNEL.T, of_taps))


def _combine(matrix: np.ndarray, terms: list[jax.Array]) -> list[jax.Array]:
  """The matrix times a vector of arrays."""
  combined: Callable[[np.ndarray], Any] = lambda row: sum(
      np.asarray(factor, term.dtype) * term for factor, term in zip(row, terms) if factor)
  return [combined(row) for row in matrix]
