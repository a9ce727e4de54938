"""Inter-slice global context between adjacent slices (MLIC, section 3, on inter-slice global context)."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import nonanchor_features, project_parities, rotations, softmax_attention
from mlic_jax.model.contexts import ContextInputs

OPTIONS, check = attention.OPTIONS, attention.check
NUM_HEADS = 2


class Context(nn.Module):
  """Attention over slice k-1 for the non-anchors of slice k, two (B, h, w, Cs) -> (B, h, w/2, features).

  Queries are the anchors of slice k, because its non-anchors are not decoded yet. Keys are the anchors of slice k-1,
  and values are its non-anchors. The result of an anchor belongs to the non-anchor at the same packed position, which
  is its neighbor in the row.
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
    q, k, v = project_parities((inputs.anchor, True), (inputs.previous, True), (inputs.previous, False), inputs.for_tpu)
    rotate = rotations(self.config, h, w)(True)
    attended = softmax_attention(q, k, v, NUM_HEADS, rotate_q=rotate, rotate_k=rotate)
    return nonanchor_features(self.config, attended, h, w)
