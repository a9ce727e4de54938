"""The latents of an image, checks of qualities, and their errors."""
import numbers
from typing import Any, NamedTuple

import jax
import numpy as np

from mlic_jax.coding.bitstream import round_quality


class QualityError(ValueError):
  """The checkpoint does not have the quality; the message is one line."""


def check_quality(quality: float | None, rates: int, name: str) -> float | None:
  """Rounds a quality as a file stores it, to float32. None stays None.

  QualityError if the checkpoint `name`, with `rates` rate points (0 for a single rate), does not have the quality."""
  if quality is None and not rates:
    return None
  given: object = quality  # of any type, for the type checker
  if quality is not None and (isinstance(given, bool) or not isinstance(given, numbers.Real)):
    raise QualityError(f"quality {quality!r}; wanted a number")
  if not rates:
    raise QualityError(f"quality {quality}; {name} has a single rate and takes no quality")
  if quality is None or not 1 <= quality <= rates:
    raise QualityError(f"quality {quality}; {name} has 1 to {rates}")
  coded: Any = np.float32(round_quality(quality))
  return coded


class LatentError(ValueError):
  """The latents are not finite, for example with a broken checkpoint, or have wrong shapes; the message is one line."""


class Latents(NamedTuple):
  """The latents of an image; h and w are the height and width of the padded image over the stride of the transform."""
  y: np.ndarray | jax.Array   # (1, h, w, M) float32, multiplied by the gain of the quality
  z: np.ndarray | jax.Array   # (1, h/4, w/4, N) float32
  height: int                 # of the image in pixels, before padding
  width: int
  quality: float | None       # a result of `Codec.choose_quality`
