"""Convolutions and transposed convolutions with the padding of PyTorch, GDN, residual blocks. Arrays are NHWC."""

import contextlib
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.kernels.channel_product import channel_product
from mlic_jax.kernels.convolution import conv2d, depthwise_conv, matmul_precision, padding
from mlic_jax.model.activation import gelu
from mlic_jax.model.initializers import normal
from mlic_jax.model.lazy_params import parameter
from mlic_jax.model.straight_through import lower_bound

IMAGE_CHANNELS = 3  # of x_hat, whose pixels training on TPUs compares before they are shuffled (training/losses.py)
# Initial scales of the last convolution of residual branches. Three inverse GDNs in a row grow faster than linearly;
# with a scale of 1 the first reconstructions of a training are many times too bright.
RESIDUAL_INIT, RESAMPLING_INIT = 0.1, 0.3


def live_lecun_normal(live: jax.Array | np.ndarray | None, scale: float = 1.0):
  """Return LeCun's normal initializer with the fan-in of the live inputs; weights of the others are zero.

  The step of slice k has the full width of y as input, of which only decoded slices are not zero. With the nominal
  fan-in the features of the first slices would be far too small.

  Args:
    live: (in_features,) bool, may be traced; None if all inputs are live.
    scale: factor of the standard deviation.
  """
  def init(key, shape, dtype=jnp.float32):
    inputs = jnp.ones(shape[-2], bool) if live is None else live
    fan_in = jnp.maximum(inputs.sum(), 1) * math.prod(shape[:-2])
    std = scale * jax.lax.rsqrt(fan_in.astype(dtype)) * inputs[:, None]
    return normal(key, jnp.broadcast_to(std, shape))
  return init


class Conv(nn.Module):
  """Convolution, (B, H, W, C) -> (B, H/stride, W/stride, features), padded by (kernel_size - 1) // 2 on each side.

  `init_scale` and `init_bias` set the initial kernel and bias. `dtype` is that of the computation and of the result;
  None means that of x. `before_shuffle` is as in conv2d. If `live` is a NumPy array, only the channels up to the last
  live one are multiplied. With `live_outputs` only this number of channels is computed, and the result is
  (B, H/stride, W/stride, live_outputs).
  """
  features: int
  kernel_size: int = 3
  stride: int = 1
  depthwise: bool = False
  init_scale: float = 1.0
  init_bias: float = 0.0
  dtype: jax.typing.DTypeLike | None = None
  before_shuffle: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, live: jax.Array | np.ndarray | None = None,
               live_outputs: int | None = None) -> jax.Array:
    x, size = x.astype(self.dtype or x.dtype), self.kernel_size
    groups = x.shape[-1] if self.depthwise else 1
    kernel = parameter(self, "kernel", live_lecun_normal(live, self.init_scale),
                       (size, size, x.shape[-1] // groups, self.features))
    bias = parameter(self, "bias", nn.initializers.constant(self.init_bias), (self.features,))
    if live_outputs is not None:
      kernel, bias = kernel[..., :live_outputs], bias[:live_outputs]
    if self.depthwise:
      return depthwise_conv(x[..., :live_outputs], kernel.astype(x.dtype), bias.astype(x.dtype))
    if isinstance(live, np.ndarray) and live.any():
      count = int(np.flatnonzero(live)[-1]) + 1
      x, kernel = x[..., :count], kernel[:, :, :count]
    return conv2d(x, kernel.astype(x.dtype), bias.astype(x.dtype), self.stride, self.before_shuffle)


class CheckerboardConv(nn.Module):
  """Convolution over the other parity only, (B, h, w, C) -> (B, h, w, features) (He et al., CVPR 2021).

      . x . x .     Taps (x) are at odd distances: anchors see non-anchors, and non-anchors see anchors. The kernel
      x . x . x     parameter has all kernel_size^2 taps; a mask sets the others to zero.
      . x . x .
      x . x . x
      . x . x .
  """
  features: int
  kernel_size: int = 5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = self.kernel_size
    taps = (np.indices((size, size)).sum(0) % 2 == 1)[..., None, None]
    fan_in = int(taps.sum()) * x.shape[-1]  # 12 of 25 taps
    init = lambda key, shape: normal(key, jnp.broadcast_to(taps * fan_in**-0.5, shape))
    kernel = parameter(self, "kernel", init, (size, size, x.shape[-1], self.features)) * taps
    bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
    return conv2d(x, kernel, bias)


def pixel_shuffle(x: jax.Array, factor: int = 2) -> jax.Array:
  """Move channel c*factor^2 + i*factor + j to offset (i, j), (B, H, W, C*factor^2) -> (B, H*factor, W*factor, C)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, c // factor**2, factor, factor)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * factor, w * factor, c // factor**2)


def pixel_unshuffle(x: jax.Array, factor: int = 2) -> jax.Array:
  """(B, H, W, C) -> (B, H/factor, W/factor, C*factor^2): the inverse of pixel_shuffle."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // factor, factor, w // factor, factor, c)
  return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // factor, w // factor, c * factor**2)


class SubpixelConv(nn.Module):
  """3x3 convolution and pixel shuffle, (B, H, W, C) -> (B, 2H, 2W, features) (Shi et al., CVPR 2016)."""
  features: int
  init_scale: float = 1.0
  init_bias: float = 0.0
  dtype: jax.typing.DTypeLike | None = None  # as in Conv

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = Conv(4 * self.features, init_scale=self.init_scale, init_bias=self.init_bias, dtype=self.dtype,
                before_shuffle=self.features > IMAGE_CHANNELS, name="conv")
    return pixel_shuffle(conv(x))


class ConvTranspose(nn.Module):
  """Transposed convolution of stride 2, (B, H, W, C) -> (B, 2H, 2W, features).

  Tap (i, j) of the kernel maps x[u, v] to the output at (2u + i - pad, 2v + j - pad), where pad is that of a `Conv` of
  the same kernel size. In PyTorch, 5x5 has padding 2 and output_padding 1, 4x4 has padding 1, and 2x2 has none.

  It is computed as a convolution whose features at a position are a 2x2 cell of the output (Shi et al.,
  arXiv:1609.07009). On CPU this avoids the zeros of a dilated input, `conv2d` has fast gradients for it, and on
  accelerators the 3 channels of an image are 12 features. A 5x5 kernel becomes 3x3 with 25 of 36 weights in use; 2x2
  becomes 1x1 with all in use.
  """
  features: int
  kernel_size: int = 5
  init_scale: float = 1.0
  init_bias: float = 0.0
  dtype: jax.typing.DTypeLike | None = None  # as in Conv

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(self.dtype or x.dtype)
    # An output element sees one tap in four, so the fan-in is a quarter of the nominal one.
    kernel = parameter(self, "kernel", live_lecun_normal(None, 2 * self.init_scale),
                       (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
    bias = parameter(self, "bias", nn.initializers.constant(self.init_bias), (self.features,))
    return pixel_shuffle(conv2d(x, subpixel_kernel(kernel).astype(x.dtype), jnp.repeat(bias, 4).astype(x.dtype),
                                before_shuffle=self.features > IMAGE_CHANNELS))


def subpixel_kernel(kernel: jax.Array) -> jax.Array:
  """Return the kernel of a convolution that, before a pixel shuffle, is the transposed convolution of stride 2.

  (size, size, C, features) -> (n, n, C, 4*features) with odd n. Along a side, tap t and offset p of the cell have tap
  p + pad + 2 (n // 2 - t) of the given kernel.
  """
  size, _, c, features = kernel.shape
  pad = padding(size)
  reach = (pad + 1) // 2
  n, margin = 2 * reach + 1, (2 * reach - pad, 2 * reach + 2 + pad - size)
  taps = jnp.pad(kernel, (margin, margin, (0, 0), (0, 0))).reshape(n, 2, n, 2, c, features)[::-1, :, ::-1]
  return taps.transpose(0, 2, 4, 5, 1, 3).reshape(n, n, c, 4 * features)


class GDN(nn.Module):
  """Generalized divisive normalization, x / sqrt(beta + gamma x^2), or its inverse (Balle et al., ICLR 2016).

  The parameters are square roots of beta and gamma plus a pedestal, with a lower bound, so that beta and gamma stay
  positive after any gradient step.
  """
  inverse: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    pedestal = 2.0**-36
    stored = lambda value: jnp.sqrt(jnp.maximum(value + pedestal, pedestal))
    beta = parameter(self, "beta", lambda _, shape: stored(jnp.ones(shape)), (channels,))
    gamma = parameter(self, "gamma", lambda _, shape: stored(0.1 * jnp.eye(*shape)), (channels, channels))  # (out, in)
    beta = lower_bound(beta, (1e-6 + pedestal)**0.5)**2 - pedestal
    gamma = lower_bound(gamma, pedestal**0.5)**2 - pedestal
    norm = channel_product(x**2, gamma.astype(x.dtype)) + beta.astype(x.dtype)
    return x * (jnp.sqrt(norm) if self.inverse else jax.lax.rsqrt(norm))


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions with a skip connection, (B, H, W, C) -> (B, H, W, features)."""
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out = gelu(Conv(self.features, name="conv1")(x))
    out = gelu(Conv(self.features, init_scale=RESIDUAL_INIT, name="conv2")(out))
    return out + (x if x.shape[-1] == self.features else Conv(self.features, 1, name="skip")(x))


class ResidualBlockDown(nn.Module):
  """Residual block of stride 2 with GDN, (B, H, W, C) -> (B, H/2, W/2, features)."""
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out = gelu(Conv(self.features, stride=2, name="conv1")(x))
    out = GDN(name="gdn")(Conv(self.features, init_scale=RESAMPLING_INIT, name="conv2")(out))
    return out + Conv(self.features, 1, stride=2, name="skip")(x)


class ResidualBlockUp(nn.Module):
  """Residual block of upsampling factor 2 with inverse GDN, (B, H, W, C) -> (B, 2H, 2W, features)."""
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out = gelu(SubpixelConv(self.features, name="subpel_conv")(x))
    out = GDN(inverse=True, name="igdn")(Conv(self.features, init_scale=RESAMPLING_INIT, name="conv")(out))
    return out + SubpixelConv(self.features, name="upsample")(x)


class PartialConvBlock(nn.Module):
  """Residual block with a partial convolution, (B, H, W, C) -> (B, H, W, C), C at least 4 (Li et al., ICCV 2025).

  x + 1x1(leaky_relu(1x1(partial(x)))) with 4 C hidden channels. `partial` is a 3x3 convolution of the first C/4
  channels and the identity of the others (Chen et al., CVPR 2023)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    seen, passed = jnp.split(x, [c // 4], axis=-1)
    out = jnp.concatenate([Conv(c // 4, name="partial")(seen), passed], axis=-1)
    out = nn.leaky_relu(Conv(4 * c, 1, name="expand")(out))
    return x + Conv(c, 1, init_scale=RESIDUAL_INIT, name="reduce")(out)


class Gate(nn.Module):
  """Gate u * sigmoid(1x1(gelu(depthwise 3x3(gelu(1x1(u)))))), (B, H, W, C) -> (B, H, W, C) (MLICv2).

  The hidden width is `expansion` C. The initial sigmoid is `opening`, in (0, 1). With `norm` the input of the
  convolutions is normalized."""
  expansion: int = 1
  opening: float = RESIDUAL_INIT
  norm: bool = False

  @nn.compact
  def __call__(self, u: jax.Array) -> jax.Array:
    c, closed = u.shape[-1], float(np.log(self.opening / (1 - self.opening)))
    x = nn.LayerNorm(dtype=u.dtype, name="norm")(u) if self.norm else u
    x = gelu(Conv(self.expansion * c, 1, name="expand")(x))
    x = gelu(Conv(self.expansion * c, depthwise=True, name="depthwise")(x))
    return nn.sigmoid(Conv(c, 1, init_scale=RESIDUAL_INIT, init_bias=closed, name="reduce")(x)) * u


class ConvStack(nn.Module):
  """Convolutions of the widths `features` with GELU between them, (B, H, W, C) -> (B, H, W, features[-1]).

  `last_precision` is the matmul precision of the last convolution, as in jax.default_matmul_precision; None is that of
  the caller, which all others have.
  """
  features: Sequence[int]
  kernel_size: int = 3
  last_precision: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, live: jax.Array | np.ndarray | None = None) -> jax.Array:
    for i, features in enumerate(self.features):
      conv = Conv(features, self.kernel_size, name=f"conv{i}")
      precision = self.last_precision if i == len(self.features) - 1 else None
      with contextlib.nullcontext() if precision is None else matmul_precision(precision):
        x = conv(gelu(x) if i else x, live if i == 0 else None)
    return x
