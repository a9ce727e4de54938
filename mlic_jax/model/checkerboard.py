"""The checkerboard of anchors, and packing of one parity into half the width (He et al., CVPR 2021).

    . A . A     Anchors (A) have an odd (row + column). They are coded first, without a context in their own
    A . A .     slice. The non-anchors (.) are coded with all anchors as context.
    . A . A
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def anchor_mask(h: int, w: int) -> jax.Array:
  """Return (h, w) bool, True on anchors."""
  return (jnp.arange(h)[:, None] + jnp.arange(w)) % 2 == 1


def pack(x: jax.Array, anchors: bool | jax.Array) -> jax.Array:
  """Pack the positions of one parity, (..., h, w, C) -> (..., h, w/2, C), in the order of columns. w is even.
  `anchors` may be traced."""
  *batch, h, w, c = x.shape
  pairs = x.reshape(*batch, h, w // 2, 2, c)
  odd_row = (jnp.arange(h) % 2 == 1)[:, None, None]
  # Row 0 has its anchors in the odd columns, row 1 in the even ones.
  return jnp.where(odd_row == anchors, pairs[..., 0, :], pairs[..., 1, :])


def positions(h: int, w: int, anchors: bool | None) -> jax.Array:
  """Return (n, 2) int32, row and column of the positions of one parity in the order of `pack`; None: of all."""
  position = jnp.stack(jnp.indices((h, w)), axis=-1)
  return (position if anchors is None else pack(position, anchors)).reshape(-1, 2)


def unpack(packed: jax.Array, anchors: bool | jax.Array) -> jax.Array:
  """Invert `pack`, (..., h, w/2, C) -> (..., h, w, C), with zeros on the other parity. `anchors` may be traced."""
  *batch, h, half, c = packed.shape
  first = ((jnp.arange(h) % 2 == 1) == anchors)[:, None, None]
  zero = jnp.zeros_like(packed)
  pairs = jnp.stack([jnp.where(first, packed, zero), jnp.where(first, zero, packed)], axis=-2)
  return pairs.reshape(*batch, h, 2 * half, c)


def pack_parities(tree: Any) -> tuple[Any, Any]:
  """Pack the anchors and the non-anchors of a tree of arrays."""
  anchors, nonanchors = (jax.tree.map(functools.partial(pack, anchors=of), tree) for of in (True, False))
  return anchors, nonanchors


def unpack_parities(packed: tuple[Any, Any]) -> Any:
  """Invert `pack_parities`."""
  anchors, nonanchors = (jax.tree.map(functools.partial(unpack, anchors=of), tree)
                         for of, tree in zip((True, False), packed))
  return jax.tree.map(jnp.add, anchors, nonanchors)
