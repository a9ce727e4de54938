"""The checkerboard: which positions are anchors, and how one parity is packed into half the width.

    . A . A     Anchors (A), the positions with (row + column) odd, are coded first and see no neighbor of
    A . A .     their own slice; the others then see all the anchors (He et al., CVPR 2021).
    . A . A
"""

import jax
import jax.numpy as jnp


def anchor_mask(h: int, w: int) -> jax.Array:
  """(h, w) bool, True on anchors."""
  return (jnp.arange(h)[:, None] + jnp.arange(w)) % 2 == 1


def pack(x: jax.Array, anchors: bool) -> jax.Array:
  """(..., h, w, C) -> (..., h, w/2, C): the positions of one parity, row by row, in column order. w is even."""
  *batch, h, w, c = x.shape
  pairs = x.reshape(*batch, h, w // 2, 2, c)
  odd_row = (jnp.arange(h) % 2 == 1)[:, None, None]
  # Row 0 has its anchors in the odd columns, row 1 in the even ones.
  return jnp.where(odd_row == anchors, pairs[..., 0, :], pairs[..., 1, :])


def places(h: int, w: int, anchors: bool | None) -> jax.Array:
  """(n, 2) int32, row and column of each position of one parity in the order of `pack`; of all of them for None."""
  place = jnp.stack(jnp.indices((h, w)), axis=-1)
  return (place if anchors is None else pack(place, anchors)).reshape(-1, 2)


def unpack(packed: jax.Array, anchors: bool) -> jax.Array:
  """(..., h, w/2, C) -> (..., h, w, C): the inverse of `pack`, with zeros on the other parity."""
  *batch, h, half, c = packed.shape
  first = ((jnp.arange(h) % 2 == 1) == anchors)[:, None, None]
  zero = jnp.zeros_like(packed)
  pairs = jnp.stack([jnp.where(first, packed, zero), jnp.where(first, zero, packed)], axis=-2)
  return pairs.reshape(*batch, h, 2 * half, c)
