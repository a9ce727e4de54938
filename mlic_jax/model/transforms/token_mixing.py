"""Transforms of MLICv2 (Jiang et al., 2025), reconstructed: two token-mixing blocks in place of a residual block.

    g_a   down mix mix | down mix mix | down mix mix | conv3/2      g_s is its mirror, with up for down

The resampling layers are those of cheng2020.py. The order of layers in a block is that of the paper. Hidden widths, the
kernel sizes of the first half and the initialization are choices of this implementation. `remat` rematerializes the
blocks in the gradient.
"""

import sys

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.activation import gelu
from mlic_jax.model.layers import RESIDUAL_INIT, Conv, Gate
from mlic_jax.model.registry import options
from mlic_jax.model.transforms import check_unused_fields, cheng2020

STRIDE = 16
CELL = 2
OPTIONS = {"token_blocks": 2,      # number of blocks in place of a residual block
           "token_expansion": 2,   # hidden channels of a block per channel
           "token_depthwise_first": False,  # the first half of a block as in CompressAI, with token_expansion 1
           "gate_norm": False}     # the gate has its own LayerNorm, as in CompressAI


def settings(config: CodecConfig) -> dict[str, int | bool]:
  """Return {name: value} of OPTIONS with the values of the config. ValueError in one line for invalid values."""
  chosen = options(config, sys.modules[__name__])
  for name in ("token_blocks", "token_expansion"):
    if chosen[name] < 1:
      raise ValueError(f"options has {name}={chosen[name]}; wanted 1 or more")
  if chosen["token_depthwise_first"] and chosen["token_expansion"] != 1:
    raise ValueError(f"options has token_depthwise_first with token_expansion={chosen['token_expansion']}; wanted 1")
  return chosen


def activation_floats_per_pixel(config: CodecConfig) -> float:
  """Return the activations of the widest hidden layer and of the residual stream, in floats per pixel of the image."""
  check_unused_fields(config, "synthesis_width")
  expansion = settings(config)["token_expansion"]
  return max((expansion + 1) * width / 4**(i + 1) for i, width in enumerate((*cheng2020.widths(config), config.M)))


class TokenMixing(nn.Module):
  """Token mixing and a gate, each with a residual connection, (B, H, W, C) -> (B, H, W, C) (MLICv2, section 3.3).

      x = x + 1x1(depthwise 5x5(u + 1x1(depthwise 3x3(gelu(1x1(u)))))),   u = norm(x)
      x = x + gate(norm(x))

  Norms are over the channels of a position. `branch_init` is the initial scale of both residual branches. With
  `depthwise_first` the inner sum is u + gelu(1x1(gelu(depthwise 3x3(u)))) with C hidden channels. `gate_norm` is the
  `norm` of the gate."""
  expansion: int = OPTIONS["token_expansion"]
  branch_init: float = RESIDUAL_INIT
  depthwise_first: bool = False
  gate_norm: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    u = nn.LayerNorm(dtype=x.dtype, name="norm1")(x)
    if self.depthwise_first:
      hidden = gelu(Conv(c, depthwise=True, name="depthwise")(u))
      u = u + gelu(Conv(c, 1, name="reduce")(hidden))
    else:
      hidden = gelu(Conv(self.expansion * c, 1, name="expand")(u))
      hidden = Conv(self.expansion * c, depthwise=True, name="depthwise")(hidden)
      u = u + Conv(c, 1, name="reduce")(hidden)
    u = Conv(c, 5, depthwise=True, name="mix")(u)
    x = x + Conv(c, 1, init_scale=self.branch_init, name="out")(u)
    u = nn.LayerNorm(dtype=x.dtype, name="norm2")(x)
    return x + Gate(self.expansion, self.branch_init, self.gate_norm, name="gate")(u)


class Blocks(cheng2020.Transform):
  """Base class with `token_blocks` token-mixing blocks after each resampling."""

  def blocks(self, x: jax.Array, width: int, name: str) -> jax.Array:
    chosen = settings(self.config)
    fields = dict(depthwise_first=chosen["token_depthwise_first"], gate_norm=chosen["gate_norm"])
    for j in range(chosen["token_blocks"]):
      x = self.maybe_remat(TokenMixing)(chosen["token_expansion"], name=f"{name}_{j}", **fields)(x)
    return x


class Analysis(Blocks, cheng2020.Analysis):
  """g_a: x (B, H, W, 3) -> y (B, H/16, W/16, M)."""


class Synthesis(Blocks, cheng2020.Synthesis):
  """g_s: y_hat (B, h, w, M) -> x_hat (B, 16 h, 16 w, 3), not clipped."""
