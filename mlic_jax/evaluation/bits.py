"""Where the bits of a picture go: by the likelihoods of the model, per place and slice."""
from typing import NamedTuple

import numpy as np


class BitsMap(NamedTuple):
  """Bits of a picture that is padded to multiples of 64; h = H/16, w = W/16."""
  slices: np.ndarray   # (h, w, S), of y
  z: np.ndarray        # (h/4, w/4), the side information


def bits_map(codec, image: np.ndarray, quality: float | None) -> BitsMap:
  """Of an image (H, W, 3) uint8 at a quality."""
  y_bits, z_bits = codec.element_bits(image, quality)
  return BitsMap(y_bits.reshape(*y_bits.shape[:2], codec.config.num_slices, -1).sum(-1), z_bits.sum(-1))
