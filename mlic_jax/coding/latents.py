"""Latents of an image, and errors about them and about qualities."""
import numbers
from typing import Any, NamedTuple

import jax
import numpy as np

from mlic_jax.coding.bitstream import round_quality


class QualityError(ValueError):
  """A quality that the checkpoint does not have; one line."""


def check_quality(quality: float | None, rates: int, name: str) -> float | None:
  """The quality as a file holds it, a float32. QualityError when the checkpoint `name`, of so many rates, does not
  have it."""
  if quality is None and not rates:
    return None
  came: object = quality  # whatever a caller has
  if quality is not None and (isinstance(came, bool) or not isinstance(came, numbers.Real)):
    raise QualityError(f"quality {quality!r} came; wanted a number")
  if not rates:
    raise QualityError(f"quality {quality} came, but {name} has a single rate")
  if quality is None or not 1 <= quality <= rates:
    raise QualityError(f"quality {quality} came, {name} has 1 to {rates}")
  coded: Any = np.float32(round_quality(quality))
  return coded


class LatentError(ValueError):
  """Latents that are not finite, which happens with a broken checkpoint, or not of the codec; one line."""


class Latents(NamedTuple):
  """The latents of an image; h = H/stride and w = W/stride, of the padded image."""
  y: np.ndarray | jax.Array   # (1, h, w, M) float32, with the gain of the quality
  z: np.ndarray | jax.Array   # (1, h/4, w/4, N) float32
  height: int                 # of the image, before padding
  width: int
  quality: float | None       # as `Codec.choose_quality` gives it
