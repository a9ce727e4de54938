"""Images as cells of 2x2 pixels, with the pixels of a cell as channels, where that is faster on accelerators.

Channel 4 c + 2 i + j of a cell is channel c of its pixel (i, j), as in model/layers.py.
"""

import jax
import jax.numpy as jnp

MAX_CHANNELS = 8  # maximum of channels for convolution as cells; a TPU has 128 lanes for channels


def sum_over_positions(cells: jax.Array) -> jax.Array:
  """Returns the sum (4 C,) over positions of cells (B, H, W, 4 C), which are the gradient of a pixel shuffle.

  It sums the shuffled pixels, because XLA then removes two shuffles that cancel. Sums of even and odd rows come first,
  in whole vectors. XLA for TPUs would split a reshape to pairs of rows into single elements, and fuse both sums."""
  batch, h, w, features = cells.shape
  pixels = cells.reshape(batch, h, w, -1, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * h, 2 * w, features // 4)
  of_rows = jax.lax.optimization_barrier(jnp.stack([pixels[:, i::2].sum(1) for i in range(2)]))   # (2, B, 2 W, C)
  return of_rows.reshape(2, batch, w, 2, -1).sum((1, 2)).transpose(2, 0, 1).reshape(-1)


def is_suitable(x: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
  """Returns whether `conv_of_stride_2` supports these shapes: few channels, even sides, and a kernel of odd size."""
  _, h, w, channels = x
  return channels <= MAX_CHANNELS and channels == kernel[2] and h % 2 == w % 2 == 0 and kernel[0] % 2 == 1


def conv_of_stride_2(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves x (B, H, W, C) with stride 2, padded by half of the kernel (size, size, C, features), as cells.

  The result is (B, H/2, W/2, features). Along a side, tap t from the middle reads pixel t mod 2 of the cell t // 2, so
  that the kernel has stride 1 and four times the channels."""
  batch, h, w, c = x.shape
  size, features = kernel.shape[0], kernel.shape[-1]
  reach = size // 2
  before, after = (reach + 1) // 2, reach // 2                            # cells that are read besides the one itself
  count = before + 1 + after
  margin = (2 * before - reach, 2 * count - (2 * before - reach) - size)
  taps = jnp.pad(kernel, (margin, margin, (0, 0), (0, 0))).reshape(count, 2, count, 2, c, features)
  taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(count, count, 4 * c, features)
  cells = x.reshape(batch, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(batch, h // 2, w // 2, 4 * c)
  return jax.lax.conv_general_dilated(cells, taps, (1, 1), ((before, after),) * 2,
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))
