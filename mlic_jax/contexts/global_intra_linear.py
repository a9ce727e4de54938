"""Intra-slice global context by linear attention (MLIC++, section 3.2)."""

import jax
from flax import linen as nn

from mlic_jax.attention import Mixer, Projection, linear_attention
from mlic_jax.checkerboard import anchor_mask, pack, unpack
from mlic_jax.config import CodecConfig
from mlic_jax.contexts import Refs
from mlic_jax.layers import Conv

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
  def __call__(self, refs: Refs) -> jax.Array:
    b, h, w, c = refs.previous.shape
    anchors = anchor_mask(h, w)[..., None]
    flat = lambda x, parity: pack(x, parity).reshape(b, h * w // 2, c)
    q = flat(Projection(name="queries")(refs.previous * ~anchors), False)
    k = flat(Projection(name="keys")(refs.previous * anchors), True)
    v = flat(Projection(name="values")(refs.anchor), True)
    attended = unpack(linear_attention(q, k, v, NUM_HEADS).reshape(b, h, w // 2, c), anchors=False)
    x = Conv(self.features, 5, name="reprojection")(attended)
    return pack(x + Mixer(2 * self.features, self.features, name="mlp")(x), anchors=False)
