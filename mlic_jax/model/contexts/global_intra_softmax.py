"""Intra-slice global context by softmax attention (MLIC and MLIC+, section 3, on intra-slice global context).

Settings, beside those of attention.py:
  average_unseen   a query that sees no anchor, as in pictures of 64x64 pixels, takes the mean of all anchors, as in
                   CompressAI, in place of zeros
  hidden_window    side of the neighborhood that is hidden, odd; 0: window_size. CompressAI always hides 5.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import nonanchor_features, one_parity, softmax_attention, turns
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.registry import options

OPTIONS = attention.OPTIONS | {"average_unseen": False, "hidden_window": 0}
NUM_HEADS = 2


def check(config: CodecConfig) -> None:
  """ValueError in one line for settings that the context cannot have."""
  attention.check(config)
  if (size := options(config, sys.modules[__name__])["hidden_window"]) and (size < 0 or size % 2 == 0):
    raise ValueError(f"options has hidden_window={size}; wanted 0 or an odd number of 1 or more")


def beyond_window(nonanchors: jax.Array, h: int, w: int, size: int) -> jax.Array:
  """(n, h w/2) bool: True where a packed anchor is outside the size x size window around a packed non-anchor (n,)."""
  def place(packed, anchors):
    row = packed // (w // 2)
    return row, 2 * (packed % (w // 2)) + (row + anchors) % 2
  row, column = place(nonanchors[:, None], anchors=False)
  key_row, key_column = place(jnp.arange(h * w // 2), anchors=True)
  return jnp.maximum(abs(row - key_row), abs(column - key_column)) > size // 2


class Context(nn.Module):
  """What far anchors of slice k say about its non-anchors: (B, h, w, Cs) twice -> (B, h, w/2, features).

  Who resembles whom is taken from the previous slice, where both parities are known: its non-anchors ask, its anchors
  are the keys; the values are the anchors of this slice. The neighborhood of a non-anchor, window_size or
  `hidden_window`, is hidden from it: that belongs to the local context, also where a config has none. Small pictures
  can be all neighborhood; then the attended values are zero, or the mean of all.
  """
  config: CodecConfig
  needs = ("decoded", "anchor")

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: ContextInputs) -> jax.Array:
    assert refs.anchor is not None  # it is in what this context needs
    h, w = refs.anchor.shape[1:3]
    q = one_parity("queries", refs.previous, anchors=False)
    k = one_parity("keys", refs.previous, anchors=True)
    v = one_parity("values", refs.anchor, anchors=True)
    settings, turn = options(self.config, sys.modules[__name__]), turns(self.config, h, w)
    visible = partial(beyond_window, h=h, w=w, size=settings["hidden_window"] or self.config.window_size)
    attended = softmax_attention(q, k, v, NUM_HEADS, visible, turn_q=turn(False), turn_k=turn(True),
                                 average_unseen=settings["average_unseen"])
    return nonanchor_features(self.config, attended, h, w)
