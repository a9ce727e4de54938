"""PixelRows: the rows of an image that windows need, of an array or of a file that is read in strips."""
import collections
from collections.abc import Iterator

import numpy as np

from mlic_jax.coding.tile_grid import Box
from mlic_jax.data.image_strips import ImageStrips


class PixelRows:
  """Cuts windows from an image (H, W, 3) uint8, and reads its strips from the top as far as they are needed."""

  def __init__(self, image: np.ndarray | ImageStrips):
    self._height, self._width = image.shape[:2]
    self._coming: Iterator[np.ndarray] = iter([image] if isinstance(image, np.ndarray) else image)
    self._strips = collections.deque[tuple[int, np.ndarray]]()   # with the first row of each
    self._num_read = 0                                           # rows

  def cut(self, box: Box) -> np.ndarray:
    """Returns the pixels of a box, (box.height, box.width, 3); the last row and column continue beyond the image.

    Errors as of ImageStrips; ValueError for rows that `forget` has freed."""
    left, right = min(box.left, self._width - 1), min(box.right, self._width)
    top, bottom = min(box.top, self._height - 1), min(box.bottom, self._height)
    while self._num_read < bottom:
      strip = next(self._coming)
      self._strips.append((self._num_read, strip))
      self._num_read += len(strip)
    parts = [strip[max(top - start, 0):bottom - start, left:right] for start, strip in self._strips
             if start < bottom and top < start + len(strip)]
    if sum(map(len, parts)) != bottom - top:
      raise ValueError(f"rows from {top} on were freed; wanted rows in the order of the image")
    part = np.concatenate(parts) if len(parts) > 1 else parts[0]
    missing = [(0, box.height - (bottom - top)), (0, box.width - (right - left)), (0, 0)]
    return np.pad(part, missing, mode="edge") if any(after for _, after in missing) else np.ascontiguousarray(part)

  def forget(self, row: int) -> None:
    """Frees the strips above a row; the last row of the image stays."""
    while self._strips and self._strips[0][0] + len(self._strips[0][1]) <= min(row, self._height - 1):
      self._strips.popleft()

  @property
  def num_bytes(self) -> int:
    """Memory of the rows that are held."""
    return sum(strip.nbytes for _, strip in self._strips)
