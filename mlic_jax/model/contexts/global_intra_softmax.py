"""Intra-slice global context by softmax attention (MLIC and MLIC+, section 3, on intra-slice global context).

Options, in addition to those of attention.py:
  average_unseen   a query without visible anchors, as in images of 64x64 pixels, gets the mean of all anchors instead
                   of zeros, as in CompressAI
  hidden_window    side of the window that is masked, odd; 0: window_size. CompressAI always masks 5.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import nonanchor_features, project_parities, rotations, softmax_attention
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.registry import options

OPTIONS = attention.OPTIONS | {"average_unseen": False, "hidden_window": 0}
NUM_HEADS = 2


def check(config: CodecConfig) -> None:
  """Raise a ValueError in one line for invalid options."""
  attention.check(config)
  if (size := options(config, sys.modules[__name__])["hidden_window"]) and (size < 0 or size % 2 == 0):
    raise ValueError(f"options has hidden_window={size}; wanted 0 or an odd number of 1 or more")


def beyond_window(nonanchors: jax.Array, h: int, w: int, size: int) -> jax.Array:
  """Return (n, h w/2) bool, True if a packed anchor is outside the window of `size` around a packed non-anchor (n,)."""
  def position(packed, anchors):
    row = packed // (w // 2)
    return row, 2 * (packed % (w // 2)) + (row + anchors) % 2
  row, column = position(nonanchors[:, None], anchors=False)
  key_row, key_column = position(jnp.arange(h * w // 2), anchors=True)
  return jnp.maximum(abs(row - key_row), abs(column - key_column)) > size // 2


class Context(nn.Module):
  """Attention over distant anchors of slice k for its non-anchors, two (B, h, w, Cs) -> (B, h, w/2, features).

  The attention weights come from the previous slice, where both parities are decoded: queries are its non-anchors, keys
  are its anchors. Values are the anchors of slice k. The window around a non-anchor (window_size or `hidden_window`) is
  masked, because it belongs to the local context, even if a config has none. In small images all anchors can be masked;
  the attended values are then zero, or the mean of all.
  """
  config: CodecConfig
  needs = ("decoded", "anchor")

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, inputs: ContextInputs) -> jax.Array:
    assert inputs.anchor is not None  # "anchor" is in `needs`
    h, w = inputs.anchor.shape[1:3]
    q, k, v = project_parities((inputs.previous, False), (inputs.previous, True), (inputs.anchor, True), inputs.for_tpu)
    settings, rotate = options(self.config, sys.modules[__name__]), rotations(self.config, h, w)
    visible = partial(beyond_window, h=h, w=w, size=settings["hidden_window"] or self.config.window_size)
    attended = softmax_attention(q, k, v, NUM_HEADS, visible, rotate_q=rotate(False), rotate_k=rotate(True),
                                 average_unseen=settings["average_unseen"])
    return nonanchor_features(self.config, attended, h, w)
