"""The four transforms: g_a and g_s between image and latent, h_a and h_s between latent and hyper-latent.

The residual transforms of Cheng et al. (CVPR 2020) without attention, as simplified by the MLIC papers. With `remat`
the gradient computes the insides of every block again instead of keeping them.
"""

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.layers import Conv, ResidualBlock, ResidualBlockDown, ResidualBlockUp, SubpixelConv, gelu


class Analysis(nn.Module):
  """g_a: x (B, H, W, 3) -> y (B, H/16, W/16, M)."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    again = nn.remat if self.remat else lambda block: block
    for i, width in enumerate(self.config.transform_widths):
      x = again(ResidualBlockDown)(width, name=f"down{i}")(x)
      x = again(ResidualBlock)(width, name=f"block{i}")(x)
    return Conv(self.config.M, stride=2, name="out")(x)


class Synthesis(nn.Module):
  """g_s: y_hat (B, h, w, M) -> x_hat (B, 16 h, 16 w, 3), not clipped."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat: jax.Array) -> jax.Array:
    again = nn.remat if self.remat else lambda block: block
    x = again(ResidualBlock)(self.config.synthesis_width or self.config.M, name="block0")(y_hat)
    for i, width in enumerate(reversed(self.config.transform_widths)):
      x = again(ResidualBlockUp)(width, name=f"up{i}")(x)
      x = again(ResidualBlock)(width, name=f"block{i + 1}")(x)
    return SubpixelConv(3, init_scale=0.2, init_bias=0.5, name="out")(x)  # a training starts from grey


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
  """h_s: z_hat (B, h/4, w/4, N) -> hyper (B, h, w, 2M): M channels about scales, then M about means."""
  config: CodecConfig

  @nn.compact
  def __call__(self, z_hat: jax.Array) -> jax.Array:
    low, high = self.config.hyper_synthesis_widths
    x = gelu(Conv(low, name="conv0")(z_hat))
    x = gelu(SubpixelConv(low, name="up0")(x))
    x = gelu(Conv(high, name="conv1")(x))
    x = gelu(SubpixelConv(high, name="up1")(x))
    return Conv(2 * self.config.M, name="conv2")(x)
