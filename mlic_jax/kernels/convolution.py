"""A 2-D convolution that is computed in ways of its own on CPU, where XLA knows one; other platforms need no help.

There a 3x3 convolution is done with half the multiplications (winograd.py). XLA takes the gradient of a kernel as one
convolution with a window as large as the picture, at 90 of the 210 GFLOP/s of the forward pass (3x3, 192 to 192
channels, two cores), and in the gradient of the input of a strided convolution it multiplies the zeros between the
strides: both are matrix products here.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mlic_jax.kernels import winograd
from mlic_jax.kernels.padding import zero_pad

SETTINGS: Any = jax.config  # which declares no attributes

# Positions that one matrix product sums over: its operands then stay in the cache of a core.
BLOCK = 1024


def conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int = 1) -> jax.Array:
  """(B, H, W, C) with kernel (size, size, C, features) and bias (features,) -> (B, H/stride, W/stride, features).

  Padded by (size - 1) // 2 on each side, as PyTorch's models are: "SAME" would pad a 3x3 convolution of stride 2 on the
  right and bottom only. A kernel of even size is for stride 2, with which it halves the picture exactly. It is the
  platform that it is lowered for which decides how it is computed, not the one where it is traced."""
  return _conv2d(x, kernel, bias, stride, SETTINGS.jax_default_matmul_precision)


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """(B, H, W, C), each channel convolved with its own kernel (size, size, 1, C), padded to the same height and width.

  On CPU a sum of shifted products: XLA's grouped convolution runs on one channel at a time there. The gradient of the
  input is such a sum as well, and the taps of the kernel follow in a loop: 5x5 taps of their own compile in five times
  the time and run in three times (8 x 16 x 16 positions, 192 channels, one core). A TPU would read the picture again
  for every tap of such a sum, and has grouped convolutions of its own."""
  return _depthwise_conv(x, kernel, SETTINGS.jax_default_matmul_precision)


def padding(size: int) -> int:
  """Zeros on each side of a picture, for a kernel of so many taps."""
  return (size - 1) // 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int, precision: str | None) -> jax.Array:
  """`precision` is the one in force; the gradient has to be told, since it is traced when that no longer is."""
  if stride == 1 and winograd.suits(x, kernel):
    return _winograd_on_cpu(x, kernel) + bias
  return _conv(x, kernel, stride) + bias


def _forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int, precision: str | None):
  return _conv2d(x, kernel, bias, stride, precision), (x, kernel)


def _backward(stride: int, precision: str | None, saved: tuple[jax.Array, jax.Array], dy: jax.Array):
  with jax.default_matmul_precision(precision):
    return _gradients(*saved, dy, stride)


_conv2d.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise_conv(x: jax.Array, kernel: jax.Array, precision: str | None) -> jax.Array:
  return _depthwise_by_platform(x, kernel)


def _depthwise_forward(x: jax.Array, kernel: jax.Array, precision: str | None):
  return _depthwise_by_platform(x, kernel), (x, kernel)


def _depthwise_backward(precision: str | None, saved: tuple[jax.Array, jax.Array], dy: jax.Array):
  with jax.default_matmul_precision(precision):
    return _depthwise_gradients(*saved, dy)


_depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


@jax.jit
def _depthwise_by_platform(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.platform_dependent(x, kernel, cpu=_shifted_sum, default=functools.partial(_conv, stride=1))


def _shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
  size, (_, h, w, _), padded = kernel.shape[0], x.shape, _padded(x, kernel)
  total: Any = sum(padded[:, i:i + h, j:j + w] * kernel[i, j, 0] for i in range(size) for j in range(size))
  return total


def _padded(x: jax.Array, kernel: jax.Array) -> jax.Array:
  around = (padding(kernel.shape[0]),) * 2
  return zero_pad(x, around, around)


@jax.jit
def _depthwise_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Those of the input and the kernel."""
  of_xla = lambda x, kernel, dy: _gradients_of_xla(x, kernel, dy, stride=1)[:2]
  return jax.lax.platform_dependent(x, kernel, dy, cpu=_depthwise_gradients_on_cpu, default=of_xla)


def _depthwise_gradients_on_cpu(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  size, padded = kernel.shape[0], _padded(x, kernel)
  read = lambda tap: jax.lax.dynamic_slice(padded, (0, tap // size, tap % size, 0), x.shape)
  taps = jax.lax.map(lambda tap: (read(tap) * dy).sum((0, 1, 2)), jnp.arange(size**2))
  return _shifted_sum(dy, kernel[::-1, ::-1]), taps.reshape(kernel.shape)


def _conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  pad, groups = padding(kernel.shape[0]), x.shape[-1] // kernel.shape[2]
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups)


@jax.jit  # traced once for each shape, as a model has the same ones again and again
def _winograd_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.platform_dependent(x, kernel, cpu=winograd.conv3x3, default=functools.partial(_conv, stride=1))


@functools.partial(jax.jit, static_argnums=3)
def _gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Those of the input, the kernel and the bias."""
  of = lambda gradients: functools.partial(gradients, stride=stride)
  return jax.lax.platform_dependent(x, kernel, dy, cpu=of(_gradients_on_cpu), default=of(_gradients_of_xla))


def _gradients_of_xla(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int) -> tuple[jax.Array, ...]:
  of_x, = jax.linear_transpose(lambda x: _conv(x, kernel, stride), x)(dy)
  of_kernel, = jax.linear_transpose(lambda kernel: _conv(x, kernel, stride), kernel)(dy)
  return of_x, of_kernel, dy.sum((0, 1, 2))


def _gradients_on_cpu(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int) -> tuple[jax.Array, ...]:
  dy_rows = dy.reshape(-1, dy.shape[-1])
  # A sum over positions as a product: XLA's own takes six times as long.
  dbias = jnp.ones(len(dy_rows), dy.dtype) @ dy_rows
  if stride > 1:
    return _input_gradient(x.shape, kernel, dy, stride), _kernel_gradient(x, kernel.shape[:2], dy, stride), dbias
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  dx = winograd.conv3x3(dy, turned) if winograd.suits(dy, turned) else _conv(dy, turned, stride)
  if not winograd.suits(x, kernel):
    return dx, _kernel_gradient(x, kernel.shape[:2], dy, stride), dbias
  pairs = zip(winograd.input_rows(x), winograd.product_gradients(dy))
  return dx, winograd.kernel_gradient([_kernel_gradient(rows, (1, 3), d, stride) for rows, d in pairs]), dbias


def _input_gradient(shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
  """That of a strided convolution: every tap sends dy back to the positions that it had read."""
  size, pad = kernel.shape[0], padding(kernel.shape[0])
  total: Any = 0
  for i in range(size):
    for j in range(size):
      sent = jax.lax.dot_general(dy, kernel[i, j], (((3,), (1,)), ((), ())))
      place = [(start - pad, side + pad - start - (count - 1) * stride - 1, stride - 1)
               for start, side, count in zip((i, j), shape[1:3], dy.shape[1:3])]
      total += jax.lax.pad(sent, jnp.zeros((), sent.dtype), ((0, 0, 0), *place, (0, 0, 0)))
  return total


def _kernel_gradient(x: jax.Array, size: tuple[int, ...], dy: jax.Array, stride: int) -> jax.Array:
  """Every tap correlates what it had read with dy, summed block by block."""
  batch, h, w, features = dy.shape
  rows = _divisor(h, BLOCK // w)
  images = _divisor(batch, BLOCK // (h * w)) if rows == h else 1
  read = [(count - 1) * stride + 1 for count in (rows, w)]  # by one tap
  x = zero_pad(x, *((padding(side),) * 2 for side in size))

  def products(image, row):
    of_y = jax.lax.dynamic_slice(dy, (image, row, 0, 0), (images, rows, w, features)).reshape(-1, features)
    of_x = jax.lax.dynamic_slice(x, (image, row * stride, 0, 0), (images, read[0] + size[0] - 1, *x.shape[2:]))
    taps = [of_x[:, i:i + read[0]:stride, j:j + read[1]:stride] for i in range(size[0]) for j in range(size[1])]
    sums = [jax.lax.dot_general(tap.reshape(-1, x.shape[-1]), of_y, (((0,), (0,)), ((), ()))) for tap in taps]
    return jnp.stack(sums)

  if images == batch and rows == h:
    total = products(0, 0)
  else:
    places = jnp.stack(jnp.meshgrid(jnp.arange(0, batch, images), jnp.arange(0, h, rows)), -1).reshape(-1, 2)
    start = jnp.zeros((size[0] * size[1], x.shape[-1], features), dy.dtype)
    total, _ = jax.lax.scan(lambda total, place: (total + products(*place), None), start, places)
  return total.reshape(*size, x.shape[-1], features)


def _divisor(number: int, most: int) -> int:
  """The largest divisor of `number` that is at most `most`, and at least 1."""
  return max(d for d in range(1, max(1, min(number, most)) + 1) if number % d == 0)
