"""Light transforms for CPUs: pixel unshuffle of 8x8, then residual blocks at 1/8 and 1/16 of the resolution.

    x --8x8--> 1/8 of the resolution: DEPTHS[0] blocks --2x2--> 1/16: DEPTHS[1] blocks --1x1--> y    g_s is the mirror

No layer runs above 1/8 of the resolution, as in DCVC-RT (Jia et al., CVPR 2025), so that nearly all time goes into
large matrix products. The blocks are the bottlenecks of ELIC (He et al., CVPR 2022).

The initial transforms are a linear codec: the DCT of 8x8 blocks of luma and chroma, the Haar transform of 2x2 blocks,
and the M lowest frequencies. The residual branches are near zero. The energy of the image is therefore in few channels
from step 0 on, which strided convolutions have to learn first.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.kernels.convolution import conv2d
from mlic_jax.model.layers import Conv, pixel_shuffle, pixel_unshuffle
from mlic_jax.model.lazy_params import parameter
from mlic_jax.model.registry import options
from mlic_jax.model.transforms.token_mixing import TokenMixing

STRIDE = 16
OPTIONS = {"token_expansion": 0}   # above 0: blocks of token_mixing.py with this expansion
DEPTHS = (5, 2)        # blocks at 1/8 and at 1/16 of the resolution
BRANCH_INIT = 0.01     # initial scale of the last convolution of a block, small beside the linear codec
TOKEN_INIT = 0.001     # branch_init of token-mixing blocks
NOISE = 0.02           # of the initial linear layers, so that unused channels differ
# Initial scale of y relative to orthonormal coefficients of pixels in [0, 1]. With the initial gains of mlic.py the
# first rates fit the lambdas 0.0018 to 0.0483, for a quantization error of variance 1/12 at high rate.
SCALE = 5.0


class Analysis(nn.Module):
  """g_a: x (B, H, W, 3) -> y (B, H/16, W/16, M)."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fine, coarse = widths(self.config)
    x = Linear(dct_basis(fine), name="blocks8")(pixel_unshuffle(x - 0.5, 8))
    for i in range(DEPTHS[0]):
      x = block(self.config, self.remat, f"fine{i}")(x)
    x = Linear(haar_basis(fine, coarse), name="down")(pixel_unshuffle(x, 2))
    for i in range(DEPTHS[1]):
      x = block(self.config, self.remat, f"coarse{i}")(x)
    return SCALE * Linear(np.eye(coarse, self.config.M), name="out")(x.astype(jnp.float32))


class Synthesis(nn.Module):
  """g_s: y_hat (B, h, w, M) -> x_hat (B, 16 h, 16 w, 3), not clipped."""
  config: CodecConfig
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat: jax.Array) -> jax.Array:
    fine, coarse = widths(self.config)
    x = Linear(np.eye(self.config.M, coarse), name="in")(y_hat / SCALE)
    for i in range(DEPTHS[1]):
      x = block(self.config, self.remat, f"coarse{i}")(x)
    x = pixel_shuffle(Linear(haar_basis(fine, coarse).T, name="up")(x))
    for i in range(DEPTHS[0]):
      x = block(self.config, self.remat, f"fine{i}")(x)
    return pixel_shuffle(Linear(dct_basis(fine).T, name="blocks8")(x.astype(jnp.float32)), 8) + 0.5


def widths(config: CodecConfig) -> tuple[int, ...]:
  """Return channels at 1/8 and at 1/16 of the resolution: config.widths, or (N, M)."""
  if len(config.widths) not in (0, 2):
    raise ValueError(f"got widths={config.widths}; wanted two widths (at 1/8 and 1/16) or ()")
  return config.widths or (config.N, config.M)


def activation_floats_per_pixel(config: CodecConfig) -> float:
  """Return the activations of the widest layer (the unshuffled pixels or a block) in floats per pixel of the image."""
  fine, coarse = widths(config)
  expansion = options(config, sys.modules[__name__])["token_expansion"]
  if expansion < 0:
    raise ValueError(f"options has token_expansion={expansion}; wanted 0 or more")
  inside = expansion + 1 if expansion else 1
  return max(192, inside * fine, inside * coarse / 4) / 64


def block(config: CodecConfig, remat: bool, name: str) -> nn.Module:
  """Return a residual block, (B, h, w, C) -> (B, h, w, C)."""
  expansion = options(config, sys.modules[__name__])["token_expansion"]
  kind, fields = (TokenMixing, (expansion, TOKEN_INIT)) if expansion else (Block, ())
  return (nn.remat(kind) if remat else kind)(*fields, name=name)


class Block(nn.Module):
  """x + 1x1(act(3x3(act(1x1(x))))) with C/2 hidden channels, (B, h, w, C) -> (B, h, w, C)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels, act = x.shape[-1], lambda x: nn.leaky_relu(x, 0.1)
    hidden = act(Conv(channels // 2, 1, name="reduce")(x))
    hidden = act(Conv(channels // 2, name="mix")(hidden))
    return x + Conv(channels, 1, init_scale=BRANCH_INIT, name="expand")(hidden)


class Linear(nn.Module):
  """1x1 convolution with the initial matrix `start` (C, features) plus noise, (B, H, W, C) -> (B, H, W, features)."""
  start: np.ndarray

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    inputs, features = self.start.shape
    init = lambda key, shape: self.start + NOISE * inputs**-0.5 * jax.random.normal(key, shape)
    kernel = parameter(self, "kernel", init, (1, 1, inputs, features))
    bias = parameter(self, "bias", nn.initializers.zeros, (features,))
    return conv2d(x, kernel.astype(x.dtype), bias.astype(x.dtype))


def dct_basis(count: int) -> np.ndarray:
  """Return the matrix (192, count) from unshuffled 8x8 blocks of RGB to their lowest DCT frequencies.

  Frequencies of luma and of two chroma components are sorted together, with chroma weighted by two and three. Columns
  beyond 192 are zero."""
  frequency, position = np.mgrid[:8, :8]
  dct = np.cos(np.pi * (position + 0.5) * frequency / 8) / np.where(frequency == 0, 8, 4)**0.5
  colors = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])
  basis = np.einsum("kc,ui,vj->kuvcij", colors, dct, dct).reshape(192, 192)
  distance = np.hypot(frequency, position)
  order = np.argsort(np.stack([distance, 2 * distance + 2, 3 * distance + 3]).ravel(), kind="stable")
  return _columns(basis[order].T, count)


def haar_basis(fine: int, coarse: int) -> np.ndarray:
  """Return the matrix (4 fine, coarse) of the Haar transform of unshuffled 2x2 positions, low frequencies first."""
  haar = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
  basis = np.einsum("bp,cd->bcdp", haar, np.eye(fine)).reshape(4 * fine, 4 * fine)
  frequency = np.arange(fine) + np.array([[0], [4], [4], [4]])  # differences come after means of the same channel
  return _columns(basis[np.argsort(frequency.ravel(), kind="stable")].T, coarse)


def _columns(matrix: np.ndarray, count: int) -> np.ndarray:
  return np.pad(matrix[:, :count], ((0, 0), (0, max(0, count - matrix.shape[1]))))
