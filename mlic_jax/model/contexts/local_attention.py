"""Overlapped window checkerboard attention (MLIC+, section 3) over the anchors around each non-anchor."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.kernels.layouts import stored
from mlic_jax.kernels.padding import zero_pad
from mlic_jax.kernels.window_attention import anchors_in_lanes, attend_in_lanes, images_of_windows, windows_in_lanes
from mlic_jax.model import attention
from mlic_jax.model.activation import gelu
from mlic_jax.model.checkerboard import anchor_mask, positions
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.lazy_params import parameter
from mlic_jax.model.registry import options
from mlic_jax.model.rope import Rotary

OPTIONS, check = {"rotary": False}, attention.check
NUM_HEADS = 2
HIDDEN = -100.0  # added to the score of a masked pair, as in the authors' code


def relative_position_index(size: int) -> np.ndarray:
  """Return (size^2, size^2) indices into the table of (2 size - 1)^2 biases for each query and key of a window."""
  position = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
  offset = position[:, None] - position[None, :] + size - 1
  return offset[..., 0] * (2 * size - 1) + offset[..., 1]


def nonanchor_windows(x: jax.Array, size: int) -> jax.Array:
  """Return the window around each non-anchor, (..., h, w, C) -> (..., h, w/2, size^2, C), zero-padded. w is even.

  Strided reads are slow on TPUs. The input is therefore split once by the parities of row and column. Windows are
  slices of these four parts, for the non-anchors of even rows and for those of odd rows: first the rows of a window,
  then its columns, 4 size slices in total."""
  *batch, h, w, c = x.shape
  around, odd, rows, columns = size // 2, h % 2, (h + 1) // 2, w // 2
  padded = zero_pad(x, (around, around + odd), (around, around))
  parts = padded.reshape(*batch, rows + around, 2, columns + around, 2, c)
  of_parity = []
  for parity in range(2):
    starts = [divmod(parity + i, 2) for i in range(size)]
    tall = jnp.stack([parts[..., i:i + rows, part, :, :, :] for i, part in starts], axis=-2)
    of_parity.append(jnp.stack([tall[..., j:j + columns, part, :, :] for j, part in starts], axis=-2))
  return jnp.stack(of_parity, axis=-5).reshape(*batch, 2 * rows, columns, size**2, c)[..., :h, :, :, :]


class Context(nn.Module):
  """Self-attention in the window around each non-anchor, followed by a convolution over the window.

  All positions of a window are queries, and anchors attend to anchors only. Non-anchors are zero, but each pair of
  positions in the window has a learned bias. Outside the image queries, keys and values are zero. With the option
  `rotary` queries and keys are rotated by their positions in the window, and there is no bias.
  """
  config: CodecConfig
  needs = ("anchor",)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, inputs: ContextInputs) -> jax.Array:
    assert inputs.anchor is not None  # "anchor" is in `needs`
    qkv = nn.Dense(3 * inputs.anchor.shape[-1], name="qkv")(nn.LayerNorm(epsilon=1e-5, name="norm1")(inputs.anchor))
    # Channel c of q, k and v is dimension c // NUM_HEADS of head c % NUM_HEADS.
    qkv = [x.reshape(*x.shape[:-1], -1, NUM_HEADS) for x in jnp.split(qkv, 3, axis=-1)]
    attended = self._attend_in_lanes(*qkv) if inputs.for_tpu is True else self._attend(jnp.stack(qkv, axis=-3))

    x = nn.Dense(self.features, name="fusion")(attended)
    x = nn.Dense(self.features, name="proj")(x)
    out = nn.LayerNorm(epsilon=1e-5, name="norm2")(x)
    out = nn.Dense(self.features, name="fc2")(gelu(nn.Dense(2 * self.features, name="fc1")(out)))
    return x + out

  def _attend(self, qkv: jax.Array) -> jax.Array:
    """Attend in windows: queries, keys, values (B, h, w, 3, d, heads) -> (B, h, w/2, size^2 * heads * d)."""
    size, (b, h, w, _, d, _) = self.config.window_size, qkv.shape
    is_anchor = nonanchor_windows(anchor_mask(h, w)[..., None], size)[..., 0]       # (h, w/2, position)
    hidden = is_anchor[..., :, None] & ~is_anchor[..., None, :]                     # (h, w/2, query, key)

    # The heads are split before the windows, which are size^2 times larger.
    windows = nonanchor_windows(qkv.swapaxes(-2, -1).reshape(b, h, w, -1), size)
    windows = windows.reshape(b, h, w // 2, size**2, 3, NUM_HEADS, d)
    q, k, v = (windows[..., i, :, :] for i in range(3))
    q, k, biases = self._positioned(q, k)
    scores = jnp.einsum("byxqhd,byxkhd->byxhqk", q * d**-0.5, k)
    if biases is not None:
      scores = scores + jnp.moveaxis(biases, -1, 0)
    scores = scores + jnp.where(hidden, HIDDEN, 0.0)[None, :, :, None]
    attended = jnp.einsum("byxhqk,byxkhd->byxqhd", nn.softmax(scores), v)
    return attended.reshape(b, h, w // 2, -1)

  def _attend_in_lanes(self, *qkv: jax.Array) -> jax.Array:
    """Attend as `_attend`, with windows in the lanes of a TPU."""
    size, (b, h, w, d, _) = self.config.window_size, qkv[0].shape
    q, k, v = (windows_in_lanes(each, size) for each in qkv)
    images = q.shape[2] // NUM_HEADS                                                # and strips of them
    to_heads = lambda x: x.transpose(3, 1, 2, 0)                                    # (lanes, position, n, d)
    q, k, learned = self._positioned(to_heads(q), to_heads(k))
    is_anchor = anchors_in_lanes(h, w, size).astype(q.dtype)                        # (position, strips, lanes)
    is_anchor = np.tile(is_anchor, (1, NUM_HEADS * b, 1))
    biases = HIDDEN * (is_anchor * (1 - is_anchor[:, None]))                        # (key, query, n, lanes)
    if learned is not None:
      biases = biases + stored(jnp.repeat(learned.swapaxes(0, 1), images, axis=-1))[..., None]
    q, k = to_heads(q * d**-0.5), to_heads(k)
    if learned is None:  # XLA would rotate them again for every vector of products
      q, k = jax.lax.optimization_barrier((q, k))
    attended = attend_in_lanes(q, k, v, biases)
    return images_of_windows(attended, NUM_HEADS, h, w).reshape(b, h, w // 2, -1)

  def _positioned(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return queries and keys (..., position, heads, d) with their positions, and biases (query, key, heads) or None.

    Either the queries and keys are rotated, or there are biases."""
    size = self.config.window_size
    if options(self.config, sys.modules[__name__])["rotary"]:
      rotate, window = Rotary(name="rotary"), positions(size, size, None)
      return rotate(q, window), rotate(k, window), None
    table = parameter(self, "relative_position_table", nn.initializers.truncated_normal(0.02),
                      ((2 * size - 1)**2, NUM_HEADS))
    return q, k, table[relative_position_index(size)]
