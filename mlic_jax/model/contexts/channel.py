"""Channel-wise context (Minnen & Singh, ICIP 2020; MLIC, section 3)."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import ConvStack


class Context(nn.Module):
  """What slices 0..k-1 say about slice k at and around the same position."""
  config: CodecConfig
  needs = ("decoded",)

  @property
  def features(self) -> int:
    return 2 * self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: ContextInputs) -> jax.Array:
    return ConvStack((*self.config.channel_widths, self.features), name="convs")(refs.decoded, refs.live)
