"""Rotary positions in two dimensions: queries and keys are turned by their places (Su et al., 2021; MLICv2, 3.4.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.model.lazy_params import parameter

THETA = 10000.0        # of rows and of columns, to start from


class Rotary(nn.Module):
  """x (..., n, heads, d), with row and column of each position in `places` (n, 2) -> the same, turned.

  Pair i of dimensions, i and d/2 + i, turns by its row for even i and by its column for odd i, times a frequency that
  falls from 1 towards 1 / theta. So the scalar product of a query and a key depends on how far apart they are, and not
  on where. theta is learned, one for rows and one for columns, as its logarithm."""

  @nn.compact
  def __call__(self, x: jax.Array, places: jax.Array) -> jax.Array:
    log_theta = parameter(self, "log_theta", nn.initializers.constant(np.log(THETA)), (2,))
    pairs = x.shape[-1] // 2
    side, rank = np.arange(pairs) % 2, np.arange(pairs) // 2
    angles = (places[:, side] * jnp.exp(-rank / ((pairs + 1) // 2) * log_theta[side]))[:, None]
    first, second, odd = jnp.split(x, [pairs, 2 * pairs], axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos, odd], axis=-1)
