"""3x3 convolutions with half the multiplications: Winograd's minimal filtering along the height, for CPU.

Four output rows need six convolutions of a row with three taps, where a plain convolution needs twelve (Winograd,
Arithmetic Complexity of Computations, 1980; Lavin & Gray, CVPR 2016, in both dimensions):

    y = OUTPUT [(KERNEL k) * (INPUT x)]         * convolves rows; the matrices act on the height

    x   six rows, in steps of four rows      k   three rows      y   four rows

On two cores this is 1.5 to 1.8 times as fast as a plain convolution. Filtering along the width as well halves the
multiplications again, but takes as long, because the sums around the products grow. Its rounding error is several times
larger.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.kernels.padding import zero_pad

ROWS = 4          # output rows of a block
ROWS_IN = ROWS + 2
# Sample points of the polynomial product, besides infinity. The rounding error is twice that of a plain convolution;
# with the usual points 0, +-1, +-2 it is three times as large.
POINTS = (0, 0.75, -0.75, 1.5, -1.5)
# With fewer input or output channels the sums outweigh the products. With small h and w the gain does not pay for the
# time to compile ten slices in a training step. The batch size does not matter, so that results do not depend on it.
CHANNELS_MIN, POSITIONS_MIN = 32, 1024


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns OUTPUT (4, 6), KERNEL (6, 3), INPUT (6, 6) of Toom-Cook: sample two polynomials, multiply, interpolate."""
  sample = lambda terms: np.vstack([np.vander(POINTS, terms, increasing=True), np.eye(terms)[-1]])
  return sample(ROWS).T, sample(3), np.linalg.inv(sample(ROWS_IN)).T.round(12)


OUTPUT, KERNEL, INPUT = _matrices()


def is_suitable(x: jax.Array, kernel_shape: tuple[int, ...]) -> bool:
  """Returns whether `conv3x3` supports x (B, H, W, C) and kernel (size, size, C, features), and is faster.

  bfloat16 is not supported, because it has too few bits for the sums."""
  _, h, w, _ = x.shape
  pays = h * w >= POSITIONS_MIN and min(kernel_shape[2:]) >= CHANNELS_MIN
  return kernel_shape[:2] == (3, 3) and h % ROWS == 0 and x.dtype == jnp.float32 and pays


@jax.jit  # to trace it once for each shape
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves x (B, H, W, C), zero-padded, with kernel (3, 3, C, features) -> (B, H, W, features). 4 divides H."""
  convolve = lambda rows, taps: jax.lax.conv_general_dilated(
      rows, taps, (1, 1), ((0, 0), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
  products = map(convolve, input_rows(x), _combine(KERNEL, [kernel[i:i + 1] for i in range(3)]))
  return jnp.stack(_combine(OUTPUT, list(products)), axis=2).reshape(*x.shape[:3], -1)


def input_rows(x: jax.Array) -> list[jax.Array]:
  """Returns the six components of INPUT x, (B, H/4, W, C) each."""
  b, h, w, c = x.shape
  x = zero_pad(x, (1, ROWS - 1), (0, 0)).reshape(b, h // ROWS + 1, ROWS, w, c)
  return _combine(INPUT, [x[:, i // ROWS:i // ROWS + h // ROWS, i % ROWS] for i in range(ROWS_IN)])


def product_gradients(dy: jax.Array) -> list[jax.Array]:
  """Returns the gradients of the six products, (B, H/4, W, features) each, of dy (B, H, W, features)."""
  b, h, w, c = dy.shape
  dy = dy.reshape(b, h // ROWS, ROWS, w, c)
  return _combine(OUTPUT.T, [dy[:, :, i] for i in range(ROWS)])


def kernel_gradient(gradients: list[jax.Array]) -> jax.Array:
  """Returns the gradient of the kernel (3, 3, C, features), given those of the six products (1, 3, C, features)."""
  return jnp.concatenate(_combine(KERNEL.T, gradients))


def _combine(matrix: np.ndarray, terms: list[jax.Array]) -> list[jax.Array]:
  """Returns the product of the matrix and a vector of arrays."""
  combined: Callable[[np.ndarray], Any] = lambda row: sum(
      np.asarray(factor, term.dtype) * term for factor, term in zip(row, terms) if factor)
  return [combined(row) for row in matrix]
