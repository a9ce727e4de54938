"""Contexts of the entropy model. Each file is one context, and a config selects contexts by file name.

A name with a dot is the import path of a custom context. A context is a linen module `Context(config)` with
  needs        required inputs: ("decoded",) the earlier slices, ("anchor",) the anchors of this slice, both, or ().
               Contexts that need anchors run in the pass of non-anchors only. Contexts that need earlier slices are
               inactive in the first slice.
  features     number of output channels.
  first_slice_only   optional; True for a context that is active in the first slice only.
  anchors_only optional; True for a context of the passes of anchors only. It must not need anchors.
  __call__     ContextInputs -> (B, h, w, features). With "anchor" in `needs` the result is (B, h, w/2, features) for
               the non-anchors, packed by checkerboard.pack.
A module with options has OPTIONS, a dict of names and defaults; see registry.options. A module that does not support
all configs has check(config), which raises a ValueError in one line.
"""

from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry


class ContextInputs(NamedTuple):
  """Inputs of the contexts in a pass of slice k. k may be traced."""
  k: jax.Array | int
  hyper: jax.Array          # (B, h, w, 2M) from h_s: M channels for scales, then M for means
  decoded: jax.Array        # (B, h, w, M) y_hat of slices 0..k-1, zeros in the others
  live: jax.Array | np.ndarray   # (M,) bool, True on the channels of slices 0..k-1; a NumPy array when k is an int
  previous: jax.Array       # (B, h, w, Cs) y_hat of slice k-1, zeros for k = 0
  anchor: jax.Array | None  # (B, h, w, Cs) y_hat of slice k on its anchors, zeros elsewhere; None in the anchor pass
  for_tpu: bool = False     # as in MLIC; contexts ask `is True`, since jit traces it in inputs that are arguments
  group: range | None = None     # as in SliceStep

  @property
  def live_in_group(self) -> jax.Array | np.ndarray:
    """(M,) bool: `live` of the last slice of the group, a NumPy array, or `live` of slice k without a group.

    Layers that get this mask do not multiply channels that are zeros in all slices of the group."""
    if self.group is None:
      return self.live
    return np.arange(self.decoded.shape[-1]) < self.group[-1] * self.previous.shape[-1]

  @property
  def num_live_in_group(self) -> int | None:
    """Number of channels in `live_in_group` if it is positive and known while tracing, else None."""
    live = self.live_in_group
    return int(live.sum()) or None if isinstance(live, np.ndarray) else None


def hyper_guide(config: CodecConfig, inputs: ContextInputs, scales: bool) -> jax.Array:
  """Return the hyper features for means, or those for scales, (B, h, w, M)."""
  return inputs.hyper[..., :config.M] if scales else inputs.hyper[..., config.M:]


def is_active(context: nn.Module, k: jax.Array | int) -> jax.Array | bool:
  """Return whether a context is active in slice k."""
  if getattr(context, "first_slice_only", False):
    return k == 0
  return k > 0 if "decoded" in context.needs else True


def is_anchors_only(context: nn.Module) -> bool:
  """Return whether a context runs in the passes of anchors only."""
  return getattr(context, "anchors_only", False)


def available() -> list[str]:
  """Return the names of the contexts of this package."""
  return registry.available(__name__)


def find(name: str) -> ModuleType:
  """Return the module of a context. PartError for an unknown name."""
  return registry.find(name, __name__, ("Context",))


def make_context(name: str, config: CodecConfig) -> nn.Module:
  """Build a context. PartError for an unknown name."""
  return find(name).Context(config)
