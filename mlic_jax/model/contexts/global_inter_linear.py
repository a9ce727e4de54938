"""Inter-slice global context by linear attention (MLIC++, section 3)."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.attention import Mixer, Projection, linear_attention
from mlic_jax.model.contexts import Refs
from mlic_jax.model.layers import Conv


class Context(nn.Module):
  """What slices 0..k-1 say about slice k from anywhere in the picture; one head per slice of y."""
  config: CodecConfig
  needs = ("decoded",)
  attention = staticmethod(linear_attention)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: Refs) -> jax.Array:
    b, h, w, m = refs.decoded.shape
    flat = lambda name: Projection(name=name)(refs.decoded, refs.live).reshape(b, h * w, m)
    attended = self.attention(flat("queries"), flat("keys"), flat("values"), self.config.num_slices)
    # The heads of slices that are not decoded yet see biases only; they have to stay silent.
    attended = attended.reshape(b, h, w, m) * refs.live
    x = Conv(self.features * 3 // 2, 5, name="reprojection")(attended, refs.live)
    return Conv(self.features, 1, name="skip")(x) + Mixer(2 * self.features, self.features, name="mlp")(x)
