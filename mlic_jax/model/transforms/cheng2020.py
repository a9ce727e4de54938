"""Transforms of the papers: the residual transforms of Cheng et al. (CVPR 2020) in the simplified version of MLIC.

The last convolutions are float32 even if the others are bfloat16, whose rounding step is 2 for y above 256, and one
gray level in the bright half of x_hat. `remat` rematerializes the blocks in the gradient.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.layers import Conv, ResidualBlock, ResidualBlockDown, ResidualBlockUp, SubpixelConv
from mlic_jax.model.transforms import three_widths

STRIDE = 16
CELL = 2


def widths(config: CodecConfig) -> tuple[int, ...]:
  """Return channels at 1/2, 1/4 and 1/8 of the resolution: config.widths, or N each."""
  return three_widths(config, (config.N,) * 3)


def activation_floats_per_pixel(config: CodecConfig) -> float:
  """Return the activations of the widest layer in floats per pixel of the image."""
  return max(width / 4**(i + 1) for i, width in enumerate(widths(config)))


class Transform(nn.Module):
  """Base class of g_a and g_s. Subclasses may override `blocks` (token_mixing.py)."""
  config: CodecConfig
  remat: bool = False

  def maybe_remat(self, kind: type[nn.Module]) -> type[nn.Module]:
    return nn.remat(kind) if self.remat else kind

  def blocks(self, x: jax.Array, width: int, name: str) -> jax.Array:
    """Apply the blocks after a resampling, or before the first one of g_s, (B, H, W, C) -> (B, H, W, width)."""
    return self.maybe_remat(ResidualBlock)(width, name=name)(x)


class Analysis(Transform):
  """g_a: x (B, H, W, 3) -> y (B, H/16, W/16, M)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, width in enumerate(widths(self.config)):
      x = self.maybe_remat(ResidualBlockDown)(width, name=f"down{i}")(x)
      x = self.blocks(x, width, f"block{i}")
    return Conv(self.config.M, stride=2, dtype=jnp.float32, name="out")(x)


class Synthesis(Transform):
  """g_s: y_hat (B, h, w, M) -> x_hat (B, 16 h, 16 w, 3), not clipped."""

  @nn.compact
  def __call__(self, y_hat: jax.Array) -> jax.Array:
    x = self.blocks(y_hat, self.config.synthesis_width or self.config.M, "block0")
    for i, width in enumerate(reversed(widths(self.config))):
      x = self.maybe_remat(ResidualBlockUp)(width, name=f"up{i}")(x)
      x = self.blocks(x, width, f"block{i + 1}")
    # Initial images are gray.
    return SubpixelConv(3, init_scale=0.2, init_bias=0.5, dtype=jnp.float32, name="out")(x)
