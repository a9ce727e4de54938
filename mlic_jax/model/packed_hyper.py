"""Hyper features as the passes of a slice read them. Their parts are taken from an array, or once for all slices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlic_jax.model.checkerboard import pack, pack_parities


class PackedHyper(NamedTuple):
  """Parts of hyper features, computed once for all slices, for TPUs. A pass also takes the array itself."""
  full: jax.Array                           # (B, h, w, 2M) from h_s
  parities: tuple[jax.Array, jax.Array]     # packed anchors and non-anchors, (B, h, w/2, 2M) each
  means: jax.Array                          # (B, h, w, M), the second half of the channels

  @classmethod
  def of(cls, hyper: jax.Array) -> "PackedHyper":
    """Compute all parts of hyper features (B, h, w, 2M)."""
    return cls(hyper, pack_parities(hyper), jnp.split(hyper, 2, axis=-1)[1])


def full(hyper: jax.Array | PackedHyper) -> jax.Array:
  """Return the hyper features (B, h, w, 2M)."""
  return hyper.full if isinstance(hyper, PackedHyper) else hyper


def parity_of(hyper: jax.Array | PackedHyper, anchors: bool) -> jax.Array:
  """Return the packed hyper features of one parity, (B, h, w/2, 2M)."""
  return hyper.parities[0 if anchors else 1] if isinstance(hyper, PackedHyper) else pack(hyper, anchors)


def means_of(hyper: jax.Array | PackedHyper) -> jax.Array:
  """Return the hyper features for means, (B, h, w, M)."""
  return hyper.means if isinstance(hyper, PackedHyper) else hyper[..., hyper.shape[-1] // 2:]
