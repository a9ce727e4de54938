"""Convolutions with PyTorch's padding, there and back, GDN, residual blocks. Arrays are NHWC."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.kernels.convolution import conv2d, depthwise_conv, padding
from mlic_jax.model.activation import gelu
from mlic_jax.model.initializers import normal
from mlic_jax.model.lazy_params import parameter
from mlic_jax.model.straight_through import lower_bound

# The last convolution of a residual branch starts small: three inverse GDNs in a row grow faster than linearly, and
# with full-size branches the first reconstructions of a training are many times too bright.
RESIDUAL_INIT, RESAMPLING_INIT = 0.1, 0.3


def live_lecun_normal(live: jax.Array | np.ndarray | None, scale: float = 1.0):
  """LeCun's normal initializer over the inputs that can be non-zero; kernels of the others start at zero.

  The step of slice k is built for the full width of y, of which only the decoded slices are ever non-zero: with the
  nominal fan-in, the first slices would start with features that are far too small.

  Args:
    live: (in_features,) bool, possibly traced; None when all inputs are live.
    scale: of the standard deviation.
  """
  def init(key, shape, dtype=jnp.float32):
    inputs = jnp.ones(shape[-2], bool) if live is None else live
    fan_in = jnp.maximum(inputs.sum(), 1) * math.prod(shape[:-2])
    deviation = scale * jax.lax.rsqrt(fan_in.astype(dtype)) * inputs[:, None]
    return normal(key, jnp.broadcast_to(deviation, shape))
  return init


class Conv(nn.Module):
  """Convolution, (B, H, W, C) -> (B, H/stride, W/stride, features), padded by (kernel_size - 1) // 2 on each side.

  `init_scale` and `init_bias` are for layers that have to start quietly; they matter to a training from scratch only.
  `dtype` is that of the computation and of the result, None: that of x.
  With a `live` that is a NumPy array, only the channels up to the last live one are multiplied, and with
  `live_outputs` only so many channels are computed, (B, H/stride, W/stride, live_outputs).
  """
  features: int
  kernel_size: int = 3
  stride: int = 1
  depthwise: bool = False
  init_scale: float = 1.0
  init_bias: float = 0.0
  dtype: jax.typing.DTypeLike | None = None

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
      return depthwise_conv(x[..., :live_outputs], kernel.astype(x.dtype)) + bias.astype(x.dtype)
    if isinstance(live, np.ndarray) and live.any():
      count = int(np.flatnonzero(live)[-1]) + 1
      x, kernel = x[..., :count], kernel[:, :, :count]
    return conv2d(x, kernel.astype(x.dtype), bias.astype(x.dtype), self.stride)


class CheckerboardConv(nn.Module):
  """Convolution that looks at the other parity only, (B, h, w, C) -> (B, h, w, features) (He et al., CVPR 2021).

      . x . x .     Taps (x) are at odd distances, so anchors see non-anchors and non-anchors see anchors. The kernel
      x . x . x     holds all kernel_size^2 of them, as a plain convolution does; the others are multiplied by zero.
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
  """(B, H, W, C*factor^2) -> (B, H*factor, W*factor, C); channel c*factor^2 + i*factor + j goes to offset (i, j)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, c // factor**2, factor, factor)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * factor, w * factor, c // factor**2)


class SubpixelConv(nn.Module):
  """3x3 convolution and pixel shuffle, (B, H, W, C) -> (B, 2H, 2W, features) (Shi et al., CVPR 2016)."""
  features: int
  init_scale: float = 1.0
  init_bias: float = 0.0
  dtype: jax.typing.DTypeLike | None = None  # as of Conv

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = Conv(4 * self.features, init_scale=self.init_scale, init_bias=self.init_bias, dtype=self.dtype, name="conv")
    return pixel_shuffle(conv(x))


class ConvTranspose(nn.Module):
  """Transposed convolution of stride 2, (B, H, W, C) -> (B, 2H, 2W, features).

  Tap (i, j) of the kernel carries x[u, v] to the output at (2u + i - pad, 2v + j - pad), with the padding of the `Conv`
  that it undoes; in PyTorch, 5x5 has padding 2 and output_padding 1, 4x4 has padding 1, 2x2 none. It is computed as a
  convolution whose features at a position are a 2x2 cell of the output (Shi et al., arXiv:1609.07009): on CPU nothing
  multiplies the zeros of a dilated input, `conv2d` has quick gradients for it, and the 3 channels of a picture are 12
  features to an accelerator. 5x5 becomes 3x3 with 25 of its 36 places taken, 2x2 becomes 1x1 with all of them taken.
  """
  features: int
  kernel_size: int = 5
  init_scale: float = 1.0
  init_bias: float = 0.0
  dtype: jax.typing.DTypeLike | None = None  # as of Conv

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(self.dtype or x.dtype)
    # An element of the output meets one tap in four, so that the fan-in is a quarter of the nominal one.
    kernel = parameter(self, "kernel", live_lecun_normal(None, 2 * self.init_scale),
                       (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
    bias = parameter(self, "bias", nn.initializers.constant(self.init_bias), (self.features,))
    return pixel_shuffle(conv2d(x, subpixel_kernel(kernel).astype(x.dtype), jnp.repeat(bias, 4).astype(x.dtype)))


def subpixel_kernel(kernel: jax.Array) -> jax.Array:
  """The convolution before a pixel shuffle that is the transposed one of stride 2 of kernel (size, size, C, features).

  (n, n, C, 4*features), where n is odd: along a side, tap t and place p of the cell hold tap p + pad + 2 (n // 2 - t).
  """
  size, _, c, features = kernel.shape
  pad = padding(size)
  reach = (pad + 1) // 2
  n, margin = 2 * reach + 1, (2 * reach - pad, 2 * reach + 2 + pad - size)
  taps = jnp.pad(kernel, (margin, margin, (0, 0), (0, 0))).reshape(n, 2, n, 2, c, features)[::-1, :, ::-1]
  return taps.transpose(0, 2, 4, 5, 1, 3).reshape(n, n, c, 4 * features)


class GDN(nn.Module):
  """Generalized divisive normalization, x / sqrt(beta + gamma x^2), or its inverse (Balle et al., ICLR 2016).

  `beta` and `gamma` are stored as the square roots of their values plus a pedestal, and bounded below, so that they
  stay positive under any gradient step.
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
    norm = jnp.einsum("bhwi,oi->bhwo", x**2, gamma.astype(x.dtype)) + beta.astype(x.dtype)
    return x * (jnp.sqrt(norm) if self.inverse else jax.lax.rsqrt(norm))


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions and a skip connection; (B, H, W, C) -> (B, H, W, features)."""
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out = gelu(Conv(self.features, name="conv1")(x))
    out = gelu(Conv(self.features, init_scale=RESIDUAL_INIT, name="conv2")(out))
    return out + (x if x.shape[-1] == self.features else Conv(self.features, 1, name="skip")(x))


class ResidualBlockDown(nn.Module):
  """(B, H, W, C) -> (B, H/2, W/2, features), with GDN."""
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out = gelu(Conv(self.features, stride=2, name="conv1")(x))
    out = GDN(name="gdn")(Conv(self.features, init_scale=RESAMPLING_INIT, name="conv2")(out))
    return out + Conv(self.features, 1, stride=2, name="skip")(x)


class ResidualBlockUp(nn.Module):
  """(B, H, W, C) -> (B, 2H, 2W, features), with inverse GDN."""
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out = gelu(SubpixelConv(self.features, name="subpel_conv")(x))
    out = GDN(inverse=True, name="igdn")(Conv(self.features, init_scale=RESAMPLING_INIT, name="conv")(out))
    return out + SubpixelConv(self.features, name="upsample")(x)


class PartialConvBlock(nn.Module):
  """Residual block that convolves a quarter of its channels; (B, H, W, C) twice, C at least 4.

  x + 1x1(leaky_relu(1x1(partial(x)))), 4 C wide inside, where the 3x3 of `partial` sees the first C/4 channels and the
  others pass (Li et al., ICCV 2025; partial convolution: Chen et al., CVPR 2023)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    seen, passed = jnp.split(x, [c // 4], axis=-1)
    out = jnp.concatenate([Conv(c // 4, name="partial")(seen), passed], axis=-1)
    out = nn.leaky_relu(Conv(4 * c, 1, name="expand")(out))
    return x + Conv(c, 1, init_scale=RESIDUAL_INIT, name="reduce")(out)


class Gate(nn.Module):
  """u times how much of it passes, sigmoid(1x1(gelu(depthwise 3x3(gelu(1x1(u)))))); (B, H, W, C) twice (MLICv2).

  The gate is `expansion` C wide inside. At the start it lets `opening`, in (0, 1), of everything through. With `norm`
  it looks at a normalized u."""
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
  """Convolutions with GELU between them; `features` lists their widths, the last one the output's."""
  features: Sequence[int]
  kernel_size: int = 3

  @nn.compact
  def __call__(self, x: jax.Array, live: jax.Array | np.ndarray | None = None) -> jax.Array:
    for i, features in enumerate(self.features):
      x = Conv(features, self.kernel_size, name=f"conv{i}")(gelu(x) if i else x, live if i == 0 else None)
    return x
