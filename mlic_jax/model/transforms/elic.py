"""Transforms of ELIC (He et al., CVPR 2022): 5x5 strided convolutions, residual bottlenecks, two attention blocks.

    g_a   conv RBB x3 | conv RBB x3 attention | conv RBB x3 | conv attention      g_s is its mirror, with deconv

There are N channels at 1/2, 1/4 and 1/8 of the resolution, and M at 1/16. RBB is a residual bottleneck, without
activation after the sum. `remat` rematerializes the blocks in the gradient.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.layers import RESIDUAL_INIT, Conv, ConvTranspose
from mlic_jax.model.transforms import check_unused_fields

STRIDE = 16
CELL = 2
BOTTLENECKS = 3  # blocks at each of the three finer resolutions


def activation_floats_per_pixel(config: CodecConfig) -> float:
  """Return the activations of a layer at half of the resolution, in floats per pixel of the image."""
  check_unused_fields(config, "widths", "synthesis_width")
  if min(config.N, config.M) < 2:
    raise ValueError(f"got N={config.N} and M={config.M}; wanted at least 2 each, because bottlenecks halve them")
  return config.N / 4


class Bottleneck(nn.Module):
  """x + 1x1(relu(3x3(relu(1x1(x))))) with C/2 hidden channels, (B, H, W, C) -> (B, H, W, C)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    out = nn.relu(Conv(c // 2, 1, name="reduce")(x))
    out = nn.relu(Conv(c // 2, name="conv")(out))
    return x + Conv(c, 1, init_scale=RESIDUAL_INIT, name="expand")(out)


class AttentionBlock(nn.Module):
  """x + trunk(x) * sigmoid(1x1(branch(x))) of three bottlenecks each, (B, H, W, C) -> (B, H, W, C).

  This is the simplified attention of Cheng et al. (CVPR 2020, section 3.3), with ReLU after each bottleneck."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    trunk = branch = x
    for i in range(3):
      trunk = nn.relu(Bottleneck(name=f"trunk{i}")(trunk))
      branch = nn.relu(Bottleneck(name=f"branch{i}")(branch))
    return x + trunk * nn.sigmoid(Conv(x.shape[-1], 1, name="gate")(branch))


class Analysis(nn.Module):
  """g_a: x (B, H, W, 3) -> y (B, H/16, W/16, M)."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    maybe_remat = nn.remat if self.remat else lambda block: block
    for i in range(3):
      x = Conv(self.config.N, 5, stride=2, name=f"down{i}")(x)
      for j in range(BOTTLENECKS):
        x = maybe_remat(Bottleneck)(name=f"block{i}_{j}")(x)
      if i == 1:
        x = maybe_remat(AttentionBlock)(name="fine_attention")(x)
    x = Conv(self.config.M, 5, stride=2, dtype=jnp.float32, name="down3")(x)
    return maybe_remat(AttentionBlock)(name="coarse_attention")(x)


class Synthesis(nn.Module):
  """g_s: y_hat (B, h, w, M) -> x_hat (B, 16 h, 16 w, 3), not clipped."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat: jax.Array) -> jax.Array:
    maybe_remat = nn.remat if self.remat else lambda block: block
    x = maybe_remat(AttentionBlock)(name="coarse_attention")(y_hat)
    for i in range(3):
      x = ConvTranspose(self.config.N, name=f"up{i}")(x)
      if i == 1:
        x = maybe_remat(AttentionBlock)(name="fine_attention")(x)
      for j in range(BOTTLENECKS):
        x = maybe_remat(Bottleneck)(name=f"block{i}_{j}")(x)
    # Initial images are gray.
    return ConvTranspose(3, init_scale=0.2, init_bias=0.5, dtype=jnp.float32, name="up3")(x)
