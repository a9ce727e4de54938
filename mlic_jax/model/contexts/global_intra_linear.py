"""Intra-slice global context by linear attention (MLIC++, section 3)."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import linear_attention, nonanchor_features, project_parities, rotations
from mlic_jax.model.contexts import ContextInputs

OPTIONS, check = attention.OPTIONS, attention.check
NUM_HEADS = 2


class Context(nn.Module):
  """Attention over the anchors of slice k for its non-anchors, two (B, h, w, Cs) -> (B, h, w/2, features).

  The attention weights come from the previous slice, where both parities are decoded: queries are its non-anchors, keys
  are its anchors. Values are the anchors of slice k.
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
    rotate = rotations(self.config, h, w)
    attended = linear_attention(q, k, v, NUM_HEADS, rotate(False), rotate(True), inputs.for_tpu)
    return nonanchor_features(self.config, attended, h, w)
