"""Stacked checkerboard convolutions (MLIC, section 3, on the enhanced checkerboard context).

Setting:
  plain_convolutions   convolutions without the mask of a checkerboard, slice_channels wide inside, as in CompressAI
"""

import sys

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.activation import gelu
from mlic_jax.model.checkerboard import pack
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import CheckerboardConv, ConvStack
from mlic_jax.model.registry import options

# Each convolution carries what one parity knows to the other; after an odd number it has left the anchors and
# arrives at the non-anchors, from three times as far as by one convolution.
NUM_CONVS = 3
OPTIONS = {"plain_convolutions": False}


class Context(nn.Module):
  """What the anchors around a non-anchor say about it, by convolutions: (B, h, w, Cs) -> (B, h, w/2, features)."""
  config: CodecConfig
  needs = ("anchor",)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: ContextInputs) -> jax.Array:
    assert refs.anchor is not None  # it is in what this context needs
    x, config = refs.anchor, self.config
    if options(config, sys.modules[__name__])["plain_convolutions"]:
      widths = (config.slice_channels,) * (NUM_CONVS - 1) + (self.features,)
      return pack(ConvStack(widths, config.window_size, name="convs")(x), anchors=False)
    for i in range(NUM_CONVS):
      x = CheckerboardConv(self.features, self.config.window_size, name=f"conv{i}")(gelu(x) if i else x)
    return pack(x, anchors=False)
