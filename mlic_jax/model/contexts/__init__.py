"""Contexts: what a slice may look at. One file each; a config names them by file name.

A context is a linen module `Context(config)` with
  needs        what must be decoded before it can speak: ("decoded",) the earlier slices, ("anchor",) the anchors of
               this slice, or both. It takes part in every pass where that is known: those that need the anchors speak
               to the non-anchors only, those that need earlier slices are silent for the first slice.
  features     how many channels it returns.
  __call__     refs -> (B, h, w, features), or, when it needs the anchors, (B, h, w/2, features) for the non-anchors,
               packed as checkerboard.pack does.
"""

import difflib
import importlib
import pkgutil
from typing import NamedTuple

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig


class Refs(NamedTuple):
  """What is known when a pass of slice k begins. k may be traced."""
  k: jax.Array | int
  decoded: jax.Array        # (B, h, w, M) y_hat of slices 0..k-1, zeros beyond
  live: jax.Array           # (M,) bool, True on the channels of slices 0..k-1
  previous: jax.Array       # (B, h, w, Cs) y_hat of slice k-1, zeros for k = 0
  anchor: jax.Array | None  # (B, h, w, Cs) y_hat of slice k on its anchors, zeros elsewhere; None in the anchor pass


def available() -> list[str]:
  """The names a config can use: the modules of this folder."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def make_context(name: str, config: CodecConfig) -> nn.Module:
  """The context of that name; ValueError when there is no such file."""
  if name not in available():
    near = difflib.get_close_matches(name, available(), n=1, cutoff=0.0)[0]
    raise ValueError(f"no context {name!r} in mlic_jax/model/contexts/; the nearest is {near!r}, of {available()}")
  return importlib.import_module(f"mlic_jax.model.contexts.{name}").Context(config)
