"""Products of the channels at every position with a matrix, which are convolutions on TPUs.

XLA for TPUs stores an image with its columns in the lanes for a matrix product, and with its channels for a
convolution. A product between two convolutions would therefore copy the image four times in a training step.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from mlic_jax.kernels.convolution import INPUT, OUTPUT, SETTINGS, PrecisionForm, conv_by_xla


def channel_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Multiplies the channels of x (B, H, W, C) by matrix (features, C) -> (B, H, W, features)."""
  shapes = x.shape, matrix.shape, (*x.shape[:-1], matrix.shape[0])
  return ChannelProduct(shapes, SETTINGS.jax_default_matmul_precision)(x, matrix)


def product_by_einsum(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Multiplies as `channel_product`, as a matrix product."""
  return jnp.einsum("bhwi,oi->bhwo", x, matrix)


def product_by_conv(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Multiplies as `channel_product`, as a convolution with a kernel of one tap."""
  return conv_by_xla(x, matrix.T[None, None])


@dataclasses.dataclass(frozen=True)
class ChannelProduct(PrecisionForm):
  """<product(x, matrix), y> of x (B, H, W, C), matrix (features, C), y (B, H, W, features)."""

  def on_cpu(self, index, *others):
    return self._derivative(product_by_einsum, index, *others)

  def on_other_platforms(self, index, *others):
    by = lambda product: partial(self._derivative, product, index)
    return jax.lax.platform_dependent(*others, tpu=by(product_by_conv), default=by(product_by_einsum))

  def _derivative(self, product, index, *others):
    if index == OUTPUT:
      return product(*others)
    other, dy = others
    linear = (lambda x: product(x, other)) if index == INPUT else (lambda matrix: product(other, matrix))
    (gradient,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(self.shapes[index], dy.dtype))(dy)
    return gradient
