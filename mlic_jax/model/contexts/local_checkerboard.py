"""Checkerboard convolution (He et al., CVPR 2021): the baseline of the local contexts."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.checkerboard import pack
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import CheckerboardConv


class Context(nn.Module):
  """What the anchors around a non-anchor say about it, by one convolution: (B, h, w, Cs) -> (B, h, w/2, features)."""
  config: CodecConfig
  needs = ("anchor",)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: ContextInputs) -> jax.Array:
    assert refs.anchor is not None  # it is in what this context needs
    x = CheckerboardConv(self.features, self.config.window_size, name="conv")(refs.anchor)
    return pack(x, anchors=False)
