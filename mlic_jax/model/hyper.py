"""Hyper transforms h_a and h_s, between y and z, as in the code of the authors of MLIC++."""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.activation import gelu
from mlic_jax.model.layers import Conv, SubpixelConv


class HyperAnalysis(nn.Module):
  """h_a: y (B, h, w, M) -> z (B, h/4, w/4, N)."""
  config: CodecConfig

  @nn.compact
  def __call__(self, y: jax.Array) -> jax.Array:
    x = y
    for i, stride in enumerate((1, 1, 2, 1, 2)):
      x = Conv(self.config.N, stride=stride, name=f"conv{i}")(gelu(x) if i else x)
    return x


class HyperSynthesis(nn.Module):
  """h_s: z_hat (B, h/4, w/4, N) -> hyper features (B, h, w, 2M): M for scales, then M for means."""
  config: CodecConfig

  @nn.compact
  def __call__(self, z_hat: jax.Array) -> jax.Array:
    low, high = self.config.hyper_synthesis_widths
    x = gelu(Conv(low, name="conv0")(z_hat))
    x = gelu(SubpixelConv(low, name="up0")(x))
    x = gelu(Conv(high, name="conv1")(x))
    x = gelu(SubpixelConv(high, name="up1")(x))
    return Conv(2 * self.config.M, name="conv2")(x)
