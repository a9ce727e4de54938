"""Crops of photographs, as in the papers: at random places, some made smaller first, some mirrored."""

import numpy as np
from PIL import Image

from mlic_jax.data.image_source import REDUCTIONS, Photograph


def random_crop(photograph: Photograph, rng: np.random.Generator, crop_size: int, *, downscale_probability: float,
                downscale: str, flip: bool) -> np.ndarray:
  """A photograph with both sides at least crop_size -> (crop_size, crop_size, 3) uint8.

  With `downscale_probability` the photograph is first made smaller by a factor drawn uniformly between 1 and the
  one that leaves its short side at crop_size (Lanczos, antialiased; only the region of the crop is computed).
  Downscaling hides the traces of earlier lossy compression; `downscale` is "all", or "lossy" for the photographs that
  have any. A JPEG is decoded at half its size, or less, where that leaves pixels enough: in about half the time, and
  hardly softer. `flip` mirrors half of the crops left to right."""
  header, scale = photograph.header, 1.0
  if rng.random() < downscale_probability and (downscale == "all" or header.lossy):
    scale = rng.uniform(crop_size / header.short_side, 1.0)
  reduction = max(r for r in REDUCTIONS if r == 1 or header.reducible and r * scale <= 1)
  image = photograph.decode(reduction)
  height, width, _ = image.shape
  side = min(round(crop_size / (scale * reduction)), height, width)
  top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
  crop = image[top:top + side, left:left + side]
  if side != crop_size:
    crop = np.asarray(Image.fromarray(crop).resize((crop_size, crop_size), Image.Resampling.LANCZOS))
  if flip and rng.random() < 0.5:
    crop = crop[:, ::-1]
  return np.ascontiguousarray(crop)


def center_crop(image: np.ndarray, crop_size: int) -> np.ndarray:
  """The middle (crop_size, crop_size, 3) of (H, W, 3)."""
  top, left = ((side - crop_size) // 2 for side in image.shape[:2])
  return image[top:top + crop_size, left:left + crop_size]
