"""Intra-slice global context by linear attention (MLIC++, section 3)."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import linear_attention, nonanchor_features, one_parity, turns
from mlic_jax.model.contexts import ContextInputs

OPTIONS, check = attention.OPTIONS, attention.check
NUM_HEADS = 2


class Context(nn.Module):
  """What far anchors of slice k say about its non-anchors.

  Who resembles whom is taken from the previous slice, where both parities are known: its non-anchors ask, its anchors
  are the keys; the values are the anchors of this slice.
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
    turn = turns(self.config, h, w)
    return nonanchor_features(self.config, linear_attention(q, k, v, NUM_HEADS, turn(False), turn(True)), h, w)
