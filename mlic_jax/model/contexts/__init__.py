"""Contexts: what a slice may look at. One file each; a config names them by file name.

A name with a dot is an import path, so that a context of one's own need not lie here. A context is a linen module
`Context(config)` with
  needs        what must be decoded before it can speak: ("decoded",) the earlier slices, ("anchor",) the anchors of
               this slice, or both. It takes part in every pass where that is known: those that need the anchors speak
               to the non-anchors only, those that need earlier slices are silent for the first slice.
  features     how many channels it returns.
  first_slice_only   optional; True for one that speaks of the first slice alone.
  anchors_only optional; True for one that takes part in the passes of anchors alone. It needs no anchors.
  __call__     refs -> (B, h, w, features), or, when it needs the anchors, (B, h, w/2, features) for the non-anchors,
               packed as checkerboard.pack does.
Where it has settings of its own, the file has OPTIONS, a dict of their names and defaults; see parts.options. Where
there are configs that it cannot be built of, it has check(config), which raises ValueError in one line.
"""

from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry


class ContextInputs(NamedTuple):
  """What is known when a pass of slice k begins. k may be traced."""
  k: jax.Array | int
  hyper: jax.Array          # (B, h, w, 2M) from h_s: M channels about scales, then M about means
  decoded: jax.Array        # (B, h, w, M) y_hat of slices 0..k-1, zeros beyond
  live: jax.Array | np.ndarray   # (M,) bool, True on the channels of slices 0..k-1; a NumPy array when k is an int
  previous: jax.Array       # (B, h, w, Cs) y_hat of slice k-1, zeros for k = 0
  anchor: jax.Array | None  # (B, h, w, Cs) y_hat of slice k on its anchors, zeros elsewhere; None in the anchor pass

  @property
  def num_live(self) -> int | None:
    """How many channels are decoded, where that is known while tracing, and something is; None: as many as `live`."""
    return int(self.live.sum()) or None if isinstance(self.live, np.ndarray) else None


def hyper_guide(config: CodecConfig, refs: ContextInputs, scales: bool) -> jax.Array:
  """(B, h, w, M): the half of the hyper features about means, or that about scales."""
  return refs.hyper[..., :config.M] if scales else refs.hyper[..., config.M:]


def is_active(context: nn.Module, k: jax.Array | int) -> jax.Array | bool:
  """Whether a context says something in the passes of slice k."""
  if getattr(context, "first_slice_only", False):
    return k == 0
  return k > 0 if "decoded" in context.needs else True


def is_anchors_only(context: nn.Module) -> bool:
  """Whether a context takes part in the passes of anchors alone."""
  return getattr(context, "anchors_only", False)


def available() -> list[str]:
  """The names that need no path: the modules of this folder."""
  return registry.available(__name__)


def find(name: str) -> ModuleType:
  """The module of the context of that name; PartError when there is none."""
  return registry.find(name, __name__, ("Context",))


def make_context(name: str, config: CodecConfig) -> nn.Module:
  """The context of that name; PartError when there is none."""
  return find(name).Context(config)
