"""What is coded of a picture: its latents; and what cannot be."""
from typing import NamedTuple

import jax
import numpy as np


class QualityError(ValueError):
  """A quality that the checkpoint does not have; one line."""


class LatentError(ValueError):
  """Latents that are not finite, which happens with a broken checkpoint, or not of the codec; one line."""


class Latents(NamedTuple):
  """What is coded of a picture; h = H/stride and w = W/stride, of the padded one."""
  y: np.ndarray | jax.Array   # (1, h, w, M) float32, with the gain of the quality
  z: np.ndarray | jax.Array   # (1, h/4, w/4, N) float32
  height: int                 # of the picture itself
  width: int
  quality: float | None       # as `Codec.choose_quality` gives it
