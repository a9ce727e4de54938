"""Checkerboard convolution (He et al., CVPR 2021), the baseline of the local contexts."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.checkerboard import pack
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import CheckerboardConv


class Context(nn.Module):
  """Convolution over the anchors around each non-anchor, (B, h, w, Cs) -> (B, h, w/2, features)."""
  config: CodecConfig
  needs = ("anchor",)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, inputs: ContextInputs) -> jax.Array:
    assert inputs.anchor is not None  # "anchor" is in `needs`
    x = CheckerboardConv(self.features, self.config.window_size, name="conv")(inputs.anchor)
    return pack(x, anchors=False)
