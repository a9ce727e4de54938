"""What the global contexts share: linear attention over positions, and its convolutional projections."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.layers import Conv, gelu


class Projection(nn.Module):
  """1x1 and depthwise 3x3 convolution, (B, h, w, C) -> (B, h, w, C): queries, keys or values."""

  @nn.compact
  def __call__(self, x: jax.Array, live: jax.Array | None = None) -> jax.Array:
    x = Conv(x.shape[-1], 1, name="pointwise")(x, live)
    return Conv(x.shape[-1], 3, depthwise=True, name="depthwise")(x)


class Mixer(nn.Module):
  """The feed-forward part: 1x1, depthwise 3x3, 1x1, with GELU between; (B, h, w, C) -> (B, h, w, features)."""
  hidden: int
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = gelu(Conv(self.hidden, 1, name="expand")(x))
    x = gelu(Conv(self.hidden, 3, depthwise=True, name="depthwise")(x))
    return Conv(self.features, 1, name="reduce")(x)


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int) -> jax.Array:
  """Attention in memory and time linear in the number of positions (Shen et al., WACV 2021; MLIC++, section 3.2).

  Queries are normalised over the channels of a head, keys over positions: out = softmax(q) (softmax(k)^T v).

  Args:
    q: (B, positions, C); the heads are contiguous groups of C / num_heads channels.
    k, v: (B, other positions, C).

  Returns:
    (B, positions, C).
  """
  heads = lambda t: t.reshape(*t.shape[:2], num_heads, -1)
  q, k, v = nn.softmax(heads(q), axis=-1), nn.softmax(heads(k), axis=1), heads(v)
  summary = jnp.einsum("bnhd,bnhe->bhde", k, v)
  return jnp.einsum("bnhd,bhde->bnhe", q, summary).reshape(q.shape[0], q.shape[1], -1)
