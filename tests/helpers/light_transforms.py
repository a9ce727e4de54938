"""Transforms of two layers, for tests that compile gradients of a whole codec."""
import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.layers import GDN, Conv, SubpixelConv, pixel_shuffle, pixel_unshuffle

STRIDE = 16


class Analysis(nn.Module):
  """g_a: x (B, H, W, 3) in [0, 1] -> y (B, H/16, W/16, M)."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = GDN(name="gdn")(Conv(self.config.N, name="cells")(pixel_unshuffle(x, 8)))
    return Conv(self.config.M, stride=2, name="out")(x)


class Synthesis(nn.Module):
  """g_s: y_hat (B, h, w, M) -> x_hat (B, 16 h, 16 w, 3)."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat: jax.Array) -> jax.Array:
    x = GDN(inverse=True, name="gdn")(SubpixelConv(self.config.N, name="up")(y_hat))
    return pixel_shuffle(Conv(3 * 8 * 8, init_scale=0.2, init_bias=0.5, name="cells")(x), 8)


def activation_floats_per_pixel(config: CodecConfig) -> float:
  return max(3, config.N / 64)
