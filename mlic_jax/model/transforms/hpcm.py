"""Transforms of HPCM-Base (Li et al., ICCV 2025): partial-convolution blocks and small strided kernels.

    g_a   conv4/2 block x2 | conv2/2 block x2 | conv2/2 block x4 | conv2/2      g_s is its mirror, with deconv

Without normalization, attention and depthwise convolutions, nearly all operations are matrix products. `widths` are the
channels at 1/2, 1/4 and 1/8 of the resolution, 96, 192 and 384 in the paper. `remat` rematerializes the blocks in the
gradient.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.layers import Conv, ConvTranspose, PartialConvBlock
from mlic_jax.model.transforms import check_unused_fields, three_widths

STRIDE = 16
CELL = 2
WIDTHS = (96, 192, 384)
BLOCKS = (2, 2, 4)        # at 1/2, 1/4 and 1/8 of the resolution
KERNELS = (4, 2, 2, 2)    # kernel sizes of the resamplings, from fine to coarse


def widths(config: CodecConfig) -> tuple[int, ...]:
  """Return channels at 1/2, 1/4 and 1/8 of the resolution: config.widths, or those of the paper."""
  return three_widths(config, WIDTHS)


def activation_floats_per_pixel(config: CodecConfig) -> float:
  """Return the activations of the largest block, in floats per pixel of the image.

  The factor 2.5 is below the hidden width of 4, because XLA does not hold all hidden activations at once."""
  check_unused_fields(config, "synthesis_width")
  if min(widths(config)) < 4:
    raise ValueError(f"got widths={config.widths}; wanted at least 4 each, because blocks convolve a quarter of them")
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
    # Initial images are gray.
    return ConvTranspose(3, KERNELS[0], init_scale=0.2, init_bias=0.5, dtype=jnp.float32, name="up0")(x)
