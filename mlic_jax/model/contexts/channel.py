"""Channel-wise context (Minnen & Singh, ICIP 2020; MLIC, section 3)."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import ConvStack


class Context(nn.Module):
  """Features of slices 0..k-1 around each position, (B, h, w, M) -> (B, h, w, features)."""
  config: CodecConfig
  needs = ("decoded",)

  @property
  def features(self) -> int:
    return 2 * self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, inputs: ContextInputs) -> jax.Array:
    return ConvStack((*self.config.channel_widths, self.features), name="convs")(inputs.decoded, inputs.live_in_group)
