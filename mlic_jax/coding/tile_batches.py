"""Tiles in batches of one size, for functions that are compiled once."""
from collections.abc import Iterator, Sequence

import numpy as np


def batches(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
  """`size` numbers at a time; the last time what is left."""
  for start in range(0, len(numbers), size):
    yield numbers[start:start + size]


def filled(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
  """Returns the arrays with their last element repeated up to `size` along the first axis."""
  return [np.concatenate([each, *[each[-1:]] * (size - len(each))]) for each in arrays]
