"""Rotary position embeddings in two dimensions (RoPE; Su et al., 2021; MLICv2, section 3.4.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.model.lazy_params import parameter

THETA = 10000.0        # initial base of rows and of columns


class Rotary(nn.Module):
  """Rotate x (..., n, heads, d) by `positions` (n, 2), which are rows and columns.

  Pair i of dimensions (i and d/2 + i) is rotated by the row for even i and by the column for odd i, times a frequency
  that falls from 1 to 1 / theta. The scalar product of a query and a key then depends on their offset only. theta is
  learned as its logarithm, one for rows and one for columns."""

  def setup(self):
    self.log_theta = parameter(self, "log_theta", nn.initializers.constant(np.log(THETA)), (2,))

  def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    return rotate(x, positions, self.log_theta)


def rotate(x: jax.Array, positions: jax.Array, log_theta: jax.Array) -> jax.Array:
  """`Rotary` as a function of its parameters, for jax.lax.switch."""
  pairs = x.shape[-1] // 2
  side, rank = np.arange(pairs) % 2, np.arange(pairs) // 2
  angles = (positions[:, side] * jnp.exp(-rank / ((pairs + 1) // 2) * log_theta[side]))[:, None]
  first, second, odd = jnp.split(x, [pairs, 2 * pairs], axis=-1)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return jnp.concatenate([first * cos - second * sin, first * sin + second * cos, odd], axis=-1)


class OutputRotary(nn.Module):
  """Rotate features x (B, h, w, C), C even, by their absolute positions, as in MLICv2 of CompressAI.

  Channels 2 i and 2 i + 1 are rotated by column * theta_x^-f + row * theta_y^-f, with f = 2 i / C. `theta` (2,) has
  theta_x and theta_y, which are learned; absolute values below 1 count as 1."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h, w, channels = x.shape[1:]
    theta = parameter(self, "theta", nn.initializers.constant(THETA), (2,))
    frequency = np.arange(0, channels, 2, dtype=np.float32) / channels
    x_rate, y_rate = (jnp.maximum(jnp.abs(each), 1.0)**-frequency for each in theta)
    angles = jnp.arange(w)[:, None] * x_rate + jnp.arange(h)[:, None, None] * y_rate   # (h, w, C/2)
    even, odd, cos, sin = x[..., ::2], x[..., 1::2], jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)
