"""The transforms of HPCM, base size (Li et al., ICCV 2025): partial-convolution blocks, kernels as large as strides.

    g_a   conv4/2 block x2 | conv2/2 block x2 | conv2/2 block x4 | conv2/2      g_s is its mirror, deconv for conv

No normalization, no attention, no depthwise convolution: nearly all of it is matrix products. `widths` are the channels
at 1/2, 1/4 and 1/8 of the resolution, 96, 192 and 384 in the paper. With `remat` the gradient computes the insides of
every block again instead of keeping them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.layers import Conv, ConvTranspose, PartialConvBlock
from mlic_jax.model.transforms import refuse_unread, three_widths

STRIDE = 16
WIDTHS = (96, 192, 384)
BLOCKS = (2, 2, 4)        # at 1/2, 1/4 and 1/8 of the resolution
KERNELS = (4, 2, 2, 2)    # of the resamplings, from fine to coarse


def widths(config: CodecConfig) -> tuple[int, ...]:
  """Channels at 1/2, 1/4 and 1/8 of the resolution: config.widths, or those of the paper."""
  return three_widths(config, WIDTHS)


def activation_floats_per_pixel(config: CodecConfig) -> float:
  """Of a block that is 4 times as wide inside, where XLA has less at once than for a layer that is as wide."""
  refuse_unread(config, "synthesis_width")
  if min(widths(config)) < 4:
    raise ValueError(f"widths={config.widths}, at least 4 each are wanted: a block convolves a quarter of them")
  return max(2.5 * width / 4**(i + 1) for i, width in enumerate(widths(config)))


class Analysis(nn.Module):
  """g_a: x (B, H, W, 3) -> y (B, H/16, W/16, M)."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    block = nn.remat(PartialConvBlock) if self.remat else PartialConvBlock
    for i, width in enumerate(widths(self.config)):
      x = Conv(width, KERNELS[i], stride=2, name=f"down{i}")(x)
      for j in range(BLOCKS[i]):
        x = block(name=f"block{i}_{j}")(x)
    return Conv(self.config.M, KERNELS[3], stride=2, dtype=jnp.float32, name="down3")(x)


class Synthesis(nn.Module):
  """g_s: y_hat (B, h, w, M) -> x_hat (B, 16 h, 16 w, 3), not clipped."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat: jax.Array) -> jax.Array:
    block, x = nn.remat(PartialConvBlock) if self.remat else PartialConvBlock, y_hat
    for i in reversed(range(3)):
      x = ConvTranspose(widths(self.config)[i], KERNELS[i + 1], name=f"up{i + 1}")(x)
      for j in range(BLOCKS[i]):
        x = block(name=f"block{i}_{j}")(x)
    # A training starts from gray.
    return ConvTranspose(3, KERNELS[0], init_scale=0.2, init_bias=0.5, dtype=jnp.float32, name="up0")(x)
