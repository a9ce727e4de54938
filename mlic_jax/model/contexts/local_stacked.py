"""Stacked checkerboard convolutions (MLIC, section 3, on the enhanced checkerboard context).

Option:
  plain_convolutions   convolutions without checkerboard mask, with slice_channels hidden channels, as in CompressAI
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

# Each convolution maps one parity to the other. An odd number maps anchors to non-anchors, and three have three times
# the reach of one.
NUM_CONVS = 3
OPTIONS = {"plain_convolutions": False}


class Context(nn.Module):
  """Convolutions over the anchors around each non-anchor, (B, h, w, Cs) -> (B, h, w/2, features)."""
  config: CodecConfig
  needs = ("anchor",)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, inputs: ContextInputs) -> jax.Array:
    assert inputs.anchor is not None  # "anchor" is in `needs`
    x, config = inputs.anchor, self.config
    if options(config, sys.modules[__name__])["plain_convolutions"]:
      widths = (config.slice_channels,) * (NUM_CONVS - 1) + (self.features,)
      return pack(ConvStack(widths, config.window_size, name="convs")(x), anchors=False)
    for i in range(NUM_CONVS):
      x = CheckerboardConv(self.features, self.config.window_size, name=f"conv{i}")(gelu(x) if i else x)
    return pack(x, anchors=False)
