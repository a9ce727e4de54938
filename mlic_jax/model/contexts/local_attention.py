"""Overlapped window checkerboard attention (MLIC+, section 3) over the anchors around each non-anchor."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.kernels.padding import zero_pad
from mlic_jax.model import attention
from mlic_jax.model.activation import gelu
from mlic_jax.model.checkerboard import anchor_mask, positions
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.lazy_params import parameter
from mlic_jax.model.registry import options
from mlic_jax.model.rope import Rotary
from mlic_jax.model.softmax import softmax

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
    size, (b, h, w, c) = self.config.window_size, inputs.anchor.shape
    rotary = options(self.config, sys.modules[__name__])["rotary"]
    is_anchor = nonanchor_windows(anchor_mask(h, w)[..., None], size)[..., 0]       # (h, w/2, position)
    hidden = is_anchor[..., :, None] & ~is_anchor[..., None, :]                     # (h, w/2, query, key)

    qkv = nn.Dense(3 * c, name="qkv")(nn.LayerNorm(epsilon=1e-5, name="norm1")(inputs.anchor))
    # Channel c of q, k and v is dimension c // NUM_HEADS of head c % NUM_HEADS. The heads are split before the windows,
    # which are size^2 times larger.
    qkv = qkv.reshape(b, h, w, 3, c // NUM_HEADS, NUM_HEADS).swapaxes(-2, -1).reshape(b, h, w, 3 * c)
    windows = nonanchor_windows(qkv, size).reshape(b, h, w // 2, size**2, 3, NUM_HEADS, c // NUM_HEADS)
    q, k, v = (windows[..., i, :, :] for i in range(3))
    if rotary:
      rotate, window = Rotary(name="rotary"), positions(size, size, None)
      q, k = (rotate(t, window) for t in (q, k))
    scores = jnp.einsum("byxqhd,byxkhd->byxhqk", q * (c // NUM_HEADS)**-0.5, k)
    if not rotary:
      table = parameter(self, "relative_position_table", nn.initializers.truncated_normal(0.02),
                        ((2 * size - 1)**2, NUM_HEADS))
      scores = scores + jnp.moveaxis(table[relative_position_index(size)], -1, 0)   # (head, query, key)
    scores = scores + jnp.where(hidden, HIDDEN, 0.0)[None, :, :, None]
    weights = softmax(scores) if inputs.for_tpu else nn.softmax(scores)
    attended = jnp.einsum("byxhqk,byxkhd->byxqhd", weights, v)

    x = nn.Dense(self.features, name="fusion")(attended.reshape(b, h, w // 2, size**2 * c))
    x = nn.Dense(self.features, name="proj")(x)
    out = nn.LayerNorm(epsilon=1e-5, name="norm2")(x)
    out = nn.Dense(self.features, name="fc2")(gelu(nn.Dense(2 * self.features, name="fc1")(out)))
    return x + out
