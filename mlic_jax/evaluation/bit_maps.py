"""Bit maps: estimated bits of an image for each position and slice."""
from typing import NamedTuple

import numpy as np

from mlic_jax.model import transforms


class BitsMap(NamedTuple):
  """The bits of a padded image by the likelihoods of the model; h = H/stride, w = W/stride."""
  slices: np.ndarray   # (h, w, S), bits of the slices of y
  z: np.ndarray        # (h/4, w/4), bits of the side information
  stride: int = 16     # pixels of the image per position of y, along each side


def bits_map(codec, image: np.ndarray, quality: float | None) -> BitsMap:
  """Computes the bit map of an image (H, W, 3) uint8 at a quality."""
  y_bits, z_bits = codec.element_bits(image, quality)
  return BitsMap(y_bits.reshape(*y_bits.shape[:2], codec.config.num_slices, -1).sum(-1), z_bits.sum(-1),
                 transforms.find(codec.config.transforms).STRIDE)
