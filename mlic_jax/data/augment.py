"""Crops of training images as in the papers: random positions, with optional downscaling and mirroring."""

import numpy as np
from PIL import Image

from mlic_jax.data.image_source import REDUCTIONS, LazyImage


def random_crop(lazy_image: LazyImage, rng: np.random.Generator, crop_size: int, *, downscale_probability: float,
                downscale: str, flip: bool) -> np.ndarray:
  """Return a random crop (crop_size, crop_size, 3) uint8 of an image whose sides are at least crop_size.

  With `downscale_probability` the image is first downscaled (Lanczos, antialiased; only the region of the crop is
  computed). The factor is uniform between 1 and the one at which the short side is crop_size. Downscaling hides
  artifacts of earlier lossy compression. `downscale` is "all", or "lossy" for images of lossy formats only. JPEG files
  are decoded at a reduced size if it is large enough, in about half the time and hardly softer. `flip` mirrors half of
  the crops left to right."""
  header, scale = lazy_image.header, 1.0
  if rng.random() < downscale_probability and (downscale == "all" or header.lossy):
    scale = rng.uniform(crop_size / header.short_side, 1.0)
  reduction = max(r for r in REDUCTIONS if r == 1 or header.reducible and r * scale <= 1)
  image = lazy_image.decode(reduction)
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
  """Return the center crop (crop_size, crop_size, 3) of an image (H, W, 3)."""
  top, left = ((side - crop_size) // 2 for side in image.shape[:2])
  return image[top:top + crop_size, left:left + crop_size]
