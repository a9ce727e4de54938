"""The transforms of MLICv2 as far as they are known (Jiang et al., 2025): two token-mixing blocks for a residual one.

    g_a   down mix mix | down mix mix | down mix mix | conv3/2      g_s is its mirror, up for down

What resamples is that of `cheng2020`. The order of things inside of a block is the paper's; how wide it is, what the
first half of it convolves with and how it starts are not known: docs/design.md lists what was chosen. With `remat` the
gradient computes the insides of every block again instead of keeping them.
"""

import sys

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.layers import RESIDUAL_INIT, Conv, Gate, ResidualBlockDown, ResidualBlockUp, SubpixelConv, gelu
from mlic_jax.model.parts import options
from mlic_jax.model.transforms import refuse_unread, three_widths

STRIDE = 16
OPTIONS = {"token_blocks": 2,      # that stand for a residual one
           "token_expansion": 2}   # width inside of a block, in channels per channel of it


def widths(config: CodecConfig) -> tuple[int, int, int]:
  """Channels at 1/2, 1/4 and 1/8 of the resolution: config.widths, or N each."""
  return three_widths(config, (config.N,) * 3)


def blocks(config: CodecConfig) -> tuple[int, int]:
  """How many stand for a residual one, and their expansion; ValueError for less than one."""
  chosen = options(config, sys.modules[__name__])
  for name, value in chosen.items():
    if value < 1:
      raise ValueError(f"options has {name}={value}; wanted 1 or more")
  return chosen["token_blocks"], chosen["token_expansion"]


def floats_per_pixel(config: CodecConfig) -> float:
  """Of the widest layer, which is inside of a block, and of what the block adds to."""
  refuse_unread(config, "synthesis_width")
  _, expansion = blocks(config)
  return max((expansion + 1) * width / 4**(i + 1) for i, width in enumerate((*widths(config), config.M)))


class TokenMixing(nn.Module):
  """x plus what its neighbourhood says, plus what a gate lets through; (B, H, W, C) twice (MLICv2, section 3.3).

      x = x + 1x1(depthwise 5x5(u + 1x1(depthwise 3x3(gelu(1x1(u)))))),   u = norm(x)
      x = x + gate(norm(x))

  Norms are over the channels of a position. Both halves start at `branch_init` of their size."""
  expansion: int = OPTIONS["token_expansion"]
  branch_init: float = RESIDUAL_INIT

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    u = nn.LayerNorm(dtype=x.dtype, name="norm1")(x)
    hidden = gelu(Conv(self.expansion * c, 1, name="expand")(u))
    hidden = Conv(self.expansion * c, depthwise=True, name="depthwise")(hidden)
    u = u + Conv(c, 1, name="reduce")(hidden)
    u = Conv(c, 5, depthwise=True, name="mix")(u)
    x = x + Conv(c, 1, init_scale=self.branch_init, name="out")(u)
    u = nn.LayerNorm(dtype=x.dtype, name="norm2")(x)
    return x + Gate(self.expansion, self.branch_init, name="gate")(u)


class Analysis(nn.Module):
  """g_a: x (B, H, W, 3) -> y (B, H/16, W/16, M)."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    again, (count, expansion) = nn.remat if self.remat else lambda block: block, blocks(self.config)
    for i, width in enumerate(widths(self.config)):
      x = again(ResidualBlockDown)(width, name=f"down{i}")(x)
      for j in range(count):
        x = again(TokenMixing)(expansion, name=f"block{i}_{j}")(x)
    return Conv(self.config.M, stride=2, dtype=jnp.float32, name="out")(x)


class Synthesis(nn.Module):
  """g_s: y_hat (B, h, w, M) -> x_hat (B, 16 h, 16 w, 3), not clipped."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat: jax.Array) -> jax.Array:
    again, (count, expansion) = nn.remat if self.remat else lambda block: block, blocks(self.config)
    x = y_hat
    for i, width in enumerate((0, *reversed(widths(self.config)))):
      x = again(ResidualBlockUp)(width, name=f"up{i - 1}")(x) if i else x
      for j in range(count):
        x = again(TokenMixing)(expansion, name=f"block{i}_{j}")(x)
    # A training starts from grey.
    return SubpixelConv(3, init_scale=0.2, init_bias=0.5, dtype=jnp.float32, name="out")(x)
