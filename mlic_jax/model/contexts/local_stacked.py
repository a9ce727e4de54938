"""Stacked checkerboard convolutions (MLIC, section 3, on the enhanced checkerboard context)."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.activation import gelu
from mlic_jax.model.checkerboard import pack
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import CheckerboardConv

# Each convolution carries what one parity knows to the other; after an odd number it has left the anchors and
# arrives at the non-anchors, from three times as far as by one convolution.
NUM_CONVS = 3


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
    x = refs.anchor
    for i in range(NUM_CONVS):
      x = CheckerboardConv(self.features, self.config.window_size, name=f"conv{i}")(gelu(x) if i else x)
    return pack(x, anchors=False)
