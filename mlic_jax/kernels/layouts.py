"""Layouts of arrays on TPUs, where XLA would choose others and copy."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import layout

# Rows, columns, images, channels: the order in which XLA for TPUs stores the images of convolutions. The last axis is
# in the lanes of vectors.
OF_CONVOLUTIONS = (1, 2, 0, 3)
LANES, IMAGES_MIN = 128, 2  # with fewer channels or images another order may take less memory


def in_order(x: jax.Array, axes: Sequence[int]) -> jax.Array:
  """Returns x, stored in the order of `axes`, the last one in the lanes of a TPU. For programs for TPUs alone.

  jax.export refuses the constraint without disabled_checks=[DisabledSafetyCheck.custom_call("LayoutConstraint")]."""
  of_jax: Any = layout  # its types are those of one version of jax; 0.5 has no constraints
  if not hasattr(of_jax, "with_layout_constraint"):
    return x
  return of_jax.with_layout_constraint(x, of_jax.Layout(tuple(axes)))


def as_convolutions_store(images: jax.Array) -> jax.Array:
  """Returns images (B, H, W, C), stored as convolutions store them on TPUs.

  XLA would store images of 128 columns with their columns in the lanes for everything between two convolutions. It
  would copy each image before and after a convolution, and could not fuse its activation and the sum of its bias."""
  if images.shape[0] < IMAGES_MIN or images.shape[-1] < LANES:
    return images
  in_their_order = lambda images: in_order(images, OF_CONVOLUTIONS)
  return jax.lax.platform_dependent(images, tpu=in_their_order, default=lambda images: images)


def stored(x: jax.Array) -> jax.Array:
  """Returns x, stored in the order of its axes on TPUs, where slices of the first axis need no copies."""
  in_order_of_axes = lambda x: in_order(x, range(x.ndim))
  return jax.lax.platform_dependent(x, tpu=in_order_of_axes, default=lambda x: x)
