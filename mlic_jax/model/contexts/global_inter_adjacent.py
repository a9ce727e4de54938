"""Inter-slice global context between adjacent slices (MLIC, section 3, on inter-slice global context)."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import nonanchor_features, one_parity, softmax_attention, turns
from mlic_jax.model.contexts import ContextInputs

OPTIONS, check = attention.OPTIONS, attention.check
NUM_HEADS = 2


class Context(nn.Module):
  """What slice k-1 says about the non-anchors of slice k: (B, h, w, Cs) twice -> (B, h, w/2, features).

  Slice k itself would have to ask, but its non-anchors are not known yet; its anchors stand for them. They ask, the
  anchors of slice k-1 are the keys, and its non-anchors, beside those anchors, are the values. What an anchor gets is
  for the non-anchor at the same packed position, its neighbor in the row.
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
    q = one_parity("queries", refs.anchor, anchors=True)
    k = one_parity("keys", refs.previous, anchors=True)
    v = one_parity("values", refs.previous, anchors=False)
    turn = turns(self.config, h, w)(True)
    attended = softmax_attention(q, k, v, NUM_HEADS, turn_q=turn, turn_k=turn)
    return nonanchor_features(self.config, attended, h, w)
