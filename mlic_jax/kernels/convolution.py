"""2-D convolutions that are faster on CPU than those of XLA; other platforms use the convolutions of XLA.

On CPU a 3x3 convolution has half the multiplications (winograd.py). XLA computes the gradient of a kernel as a
convolution with a window as large as the image, at 90 GFLOP/s where the forward pass reaches 210 (3x3, 192 to 192
channels, two cores). In the gradient of the input of a strided convolution XLA multiplies the zeros between the
strides. Both gradients are matrix products here.

A convolution is linear in its input and in its kernel, so it is a `Form` (multilinear.py). `jax.grad`, `jax.jvp` and
their compositions therefore use these gradients. The implementation depends on the platform of the lowered program.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mlic_jax.kernels import cells, winograd
from mlic_jax.kernels.layouts import as_convolutions_store
from mlic_jax.kernels.multilinear import Form
from mlic_jax.kernels.padding import zero_pad

SETTINGS: Any = jax.config  # its attributes are unknown to type checkers

# Positions per matrix product, so that its operands fit into the cache of a core.
BLOCK = 1024
INPUT, KERNEL, OUTPUT = range(3)  # argument indices of the forms of convolutions
HIGH_GRADIENTS = "high_gradients"
_gradient_precision: contextvars.ContextVar[str | None] = contextvars.ContextVar("gradient_precision", default=None)


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
  """Sets the matmul precision of what is traced inside, as jax.default_matmul_precision does.

  HIGH_GRADIENTS means "highest", with gradients of convolutions that have "high", three bfloat16 products on TPUs."""
  token = _gradient_precision.set("high" if name == HIGH_GRADIENTS else None)
  try:
    with jax.default_matmul_precision("highest" if name == HIGH_GRADIENTS else name):
      yield
  finally:
    _gradient_precision.reset(token)


def conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int = 1,
           before_shuffle: bool = False) -> jax.Array:
  """Convolves x (B, H, W, C) with kernel (size, size, C, features) -> (B, H/stride, W/stride, features).

  The padding is (size - 1) // 2 on each side, as in PyTorch. "SAME" would pad a 3x3 convolution of stride 2 on the
  right and at the bottom only. Kernels of even size are for stride 2, where they halve an even side exactly. The bias
  is (features,). `before_shuffle` announces a pixel shuffle of the result, see BiasBroadcast.
  """
  batch, *sides, _ = x.shape
  pad, size = padding(kernel.shape[0]), kernel.shape[0]
  out_shape = (batch, *((side + 2 * pad - size) // stride + 1 for side in sides), kernel.shape[-1])
  precision = SETTINGS.jax_default_matmul_precision
  conv = Convolution((x.shape, kernel.shape, out_shape), precision, stride, gradient_precision=gradient_precision())
  return conv(x, kernel) + BiasBroadcast((bias.shape, out_shape), precision, before_shuffle)(bias)


def depthwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Convolves each channel of x (B, H, W, C) with its own channel of kernel (size, size, 1, C) -> (B, H, W, C).

  The bias is (C,)."""
  precision = SETTINGS.jax_default_matmul_precision
  conv = DepthwiseConvolution((x.shape, kernel.shape, x.shape), precision, gradient_precision=gradient_precision())
  return conv(x, kernel) + BiasBroadcast((bias.shape, x.shape), precision)(bias)


def gradient_precision() -> str | None:
  """Returns the precision of gradients by `matmul_precision`; None is that of the forward pass."""
  return _gradient_precision.get()


def padding(size: int) -> int:
  """Returns the number of zeros on each side of an image for a kernel of `size` taps."""
  return (size - 1) // 2


@dataclasses.dataclass(frozen=True)
class PrecisionForm(Form):
  """A form with a fixed matmul precision, because gradients are traced outside the context of the forward pass.

  Attributes:
    precision: as in jax.default_matmul_precision.
    gradient_precision: that of the derivatives by all arguments but the last one; None is `precision`.
  """
  precision: str | None
  gradient_precision: str | None = dataclasses.field(default=None, kw_only=True)

  def derivative(self, index: int, on_cpu: bool, *others: jax.Array) -> jax.Array:
    is_gradient = index < len(self.shapes) - 1 and self.gradient_precision is not None
    with jax.default_matmul_precision(self.gradient_precision if is_gradient else self.precision):
      return (self.on_cpu if on_cpu else self.on_other_platforms)(index, *others)

  def on_cpu(self, index: int, *others: jax.Array) -> jax.Array:
    raise NotImplementedError

  def on_other_platforms(self, index: int, *others: jax.Array) -> jax.Array:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Convolution(PrecisionForm):
  """<conv(x, kernel), y> of x (B, H, W, C), kernel (size, size, C / groups, features), y (B, H/stride, W/stride,
  features)."""
  stride: int = 1

  def merged_batch(self, batched, count):
    if batched != (True, False, True):
      return None
    longer = lambda shape: (count * shape[0], *shape[1:])
    x, kernel, y = self.shapes
    return dataclasses.replace(self, shapes=(longer(x), kernel, longer(y)))

  def on_other_platforms(self, index, *others):
    if index == OUTPUT:
      x, kernel = others
      return as_convolutions_store(self._conv(x, kernel))
    if index == INPUT:
      kernel, dy = others
      conv = lambda x: self._conv(x, kernel)
    else:
      x, dy = others
      conv = lambda kernel: self._conv(x, kernel)
    (gradient,) = jax.linear_transpose(conv, jax.ShapeDtypeStruct(self.shapes[index], dy.dtype))(dy)
    return as_convolutions_store(gradient) if index == INPUT else gradient

  def _conv(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if self.stride == 2 and cells.is_suitable(self.shapes[INPUT], self.shapes[KERNEL]):
      return cells.conv_of_stride_2(x, kernel)
    return conv_by_xla(x, kernel, self.stride)

  def on_cpu(self, index, *others):
    if index == OUTPUT:
      x, kernel = others
      return _conv_of_stride_1(x, kernel) if self.stride == 1 else conv_by_xla(x, kernel, self.stride)
    if index == INPUT:
      kernel, dy = others
      if self.stride > 1:
        return _strided_input_gradient(self.shapes[INPUT], kernel, dy, self.stride)
      return _conv_of_stride_1(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    x, dy = others
    rows, columns, *_ = self.shapes[KERNEL]
    if self.stride > 1 or not winograd.is_suitable(x, self.shapes[KERNEL]):
      return _kernel_gradient(x, (rows, columns), dy, self.stride)
    inputs, results = jnp.stack(winograd.input_rows(x)), jnp.stack(winograd.product_gradients(dy))
    return winograd.kernel_gradient(list(_kernel_gradients(inputs, (1, 3), results, 1)))


@dataclasses.dataclass(frozen=True)
class DepthwiseConvolution(Convolution):
  """`Convolution` with one kernel per channel, (size, size, 1, C), and stride 1.

  On CPU it is a sum of shifted products, because XLA's grouped convolution computes one channel at a time there. The
  gradient of the input is such a sum, too. The gradient of the kernel is a loop over its taps. Unrolled, 5x5 taps take
  five times as long to compile and three times as long to run (8 x 16 x 16 positions, 192 channels, one core). On TPUs
  such a sum would read the image once per tap, and grouped convolutions are fast."""

  def on_cpu(self, index, *others):
    if index == OUTPUT:
      return _shifted_sum(*others)
    if index == INPUT:
      kernel, dy = others
      return _shifted_sum(dy, kernel[::-1, ::-1])
    (x, dy), (size, *_) = others, self.shapes[KERNEL]
    padded = _padded(x, size)
    shifted = lambda tap: jax.lax.dynamic_slice(padded, (0, tap // size, tap % size, 0), x.shape)
    taps = _over_taps(size**2, lambda tap: (shifted(tap) * dy).sum((0, 1, 2)))
    return taps.reshape(self.shapes[KERNEL])


@dataclasses.dataclass(frozen=True)
class BiasBroadcast(PrecisionForm):
  """<broadcast(bias), y> for bias (features,) and y (B, H, W, features).

  With `before_shuffle` y comes from the gradient of a pixel shuffle to cells of 2x2. XLA for TPUs would sum over it
  where it lies, with few of its lanes.
  """
  before_shuffle: bool = False

  def on_cpu(self, index, *others):
    other, = others
    if index == 1:
      return jnp.broadcast_to(other, self.shapes[1])
    # A matrix product sums over positions six times faster than XLA's reduction, which is two kernels to compile.
    rows = other.reshape(-1, other.shape[-1])
    return jnp.ones(len(rows), other.dtype) @ rows

  def on_other_platforms(self, index, *others):
    other, = others
    if index == 1:
      return jnp.broadcast_to(other, self.shapes[1])
    return cells.sum_over_positions(other) if self.before_shuffle else other.sum((0, 1, 2))


def conv_by_xla(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """Convolves as `conv2d` without bias, by XLA. Grouped if the kernel has fewer input channels than x."""
  pad, groups = padding(kernel.shape[0]), x.shape[-1] // kernel.shape[2]
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups)


def _conv_of_stride_1(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return winograd.conv3x3(x, kernel) if winograd.is_suitable(x, kernel.shape) else conv_by_xla(x, kernel)


def _shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
  size, (_, h, w, _), padded = kernel.shape[0], x.shape, _padded(x, kernel.shape[0])
  return jnp.asarray(sum(padded[:, i:i + h, j:j + w] * kernel[i, j, 0] for i in range(size) for j in range(size)))


def _padded(x: jax.Array, size: int) -> jax.Array:
  margin = (padding(size),) * 2
  return zero_pad(x, margin, margin)


def _strided_input_gradient(shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
  """Returns the gradient of the input, of `shape`: each tap adds its product with dy at the positions that it read."""
  size, pad = kernel.shape[0], padding(kernel.shape[0])
  contributions = []
  for i in range(size):
    for j in range(size):
      product = jax.lax.dot_general(dy, kernel[i, j], (((3,), (1,)), ((), ())))
      spread = [(start - pad, side + pad - start - (count - 1) * stride - 1, stride - 1)
                for start, side, count in zip((i, j), shape[1:3], dy.shape[1:3])]
      contributions.append(jax.lax.pad(product, jnp.zeros((), product.dtype), ((0, 0, 0), *spread, (0, 0, 0))))
  return jnp.asarray(sum(contributions))


def _kernel_gradient(x: jax.Array, size: tuple[int, int], dy: jax.Array, stride: int) -> jax.Array:
  """Returns the gradient of the kernel of a convolution of x (B, H, W, C) with the result dy (B, h, w, features)."""
  return _kernel_gradients(x[None], size, dy[None], stride)[0]


def _kernel_gradients(x: jax.Array, size: tuple[int, int], dy: jax.Array, stride: int) -> jax.Array:
  """Returns the gradients of the kernels of several convolutions, (convolutions, *size, C, features).

  x (convolutions, B, H, W, C) are their inputs and dy (convolutions, B, h, w, features) the gradients of their results.
  Each gradient is a sum over blocks, in which each tap correlates the positions that it read with dy. The taps are a
  loop, which is as fast as a product for each tap and compiles in a third of the time, 5x5 taps in an eighth."""
  count, batch, h, w, features = dy.shape
  rows = _divisor(h, BLOCK // w)
  images = _divisor(batch, BLOCK // (h * w)) if rows == h else 1
  extent = [(positions - 1) * stride + 1 for positions in (rows, w)]  # rows and columns that one tap reads
  row_blocks, blocks, taps, channels = h // rows, batch // images * (h // rows), size[0] * size[1], x.shape[-1]
  x = jax.vmap(lambda x: zero_pad(x, *((padding(side),) * 2 for side in size)))(x)

  def add_products(conv, block, total):
    image, row = block // row_blocks * images, block % row_blocks * rows
    of_y = jax.lax.dynamic_slice(dy, (conv, image, row, 0, 0), (1, images, rows, w, features)).reshape(-1, features)
    of_x = jax.lax.dynamic_slice(
        x, (conv, image, row * stride, 0, 0), (1, images, extent[0] + size[0] - 1, *x.shape[3:]))[0]

    def add_product(tap, total):
      read = jax.lax.dynamic_slice(of_x, (0, tap // size[1], tap % size[1], 0), (images, *extent, channels))
      read = jax.lax.slice(read, (0,) * 4, read.shape, (1, stride, stride, 1))
      product = jax.lax.dot_general(read.reshape(-1, channels), of_y, (((0,), (0,)), ((), ())))
      place = conv * taps + tap
      if blocks > 1:
        # Behind the barrier XLA adds in place. Fused with the update, reading would need a copy of all sums.
        product += jax.lax.optimization_barrier(jax.lax.dynamic_index_in_dim(total, place, 0, False))
      return jax.lax.dynamic_update_index_in_dim(total, product, place, 0)

    return add_product(0, total) if taps == 1 else jax.lax.fori_loop(0, taps, add_product, total)

  total = jnp.zeros((count * taps, channels, features), dy.dtype)
  if count * blocks == 1:
    total = add_products(0, 0, total)
  else:
    total = jax.lax.fori_loop(0, count * blocks, lambda i, total: add_products(i // blocks, i % blocks, total), total)
  return total.reshape(count, *size, channels, features)


def _over_taps(count: int, gradient: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """Returns the stacked gradients of taps 0 .. count - 1, computed in a loop.

  jax.lax.map needs an array of indices. It would be a kernel, and XLA takes time for each kernel of a program that
  grows with the program: 16 ms in a step of MLIC++."""
  shape = jax.eval_shape(gradient, jax.ShapeDtypeStruct((), jnp.int32))
  put = lambda tap, taps: jax.lax.dynamic_update_index_in_dim(taps, gradient(tap), tap, 0)
  return jax.lax.fori_loop(0, count, put, jnp.zeros((count, *shape.shape), shape.dtype))


def _divisor(number: int, most: int) -> int:
  """Returns the largest divisor of `number` up to `most`, at least 1."""
  return max(d for d in range(1, max(1, min(number, most)) + 1) if number % d == 0)
