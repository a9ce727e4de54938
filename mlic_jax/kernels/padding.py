"""Zero padding of images."""

import jax
import jax.numpy as jnp


def zero_pad(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
  """Pads x (..., H, W, C) with zeros: `rows` above and below, `columns` left and right.

  Two pads instead of one are faster on CPU. For one pad XLA fills the result with zeros first, which takes 1.4 times as
  long. LLVM unrolls it, and small images with many channels then take up to 0.7 s to compile. XLA fuses two pads into
  one loop."""
  others = [(0, 0)] * (x.ndim - 3)
  x = jnp.pad(x, (*others, (rows[0], 0), (columns[0], 0), (0, 0)))
  return jnp.pad(x, (*others, (0, rows[1]), (0, columns[1]), (0, 0)))
