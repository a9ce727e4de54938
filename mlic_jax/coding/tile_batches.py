"""Tiles in batches of one size, for functions that are compiled once."""
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
  """`size` items at a time; the last time what is left."""
  for start in range(0, len(items), size):
    yield items[start:start + size]


def filled(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
  """Returns the arrays with their last element repeated up to `size` along the first axis."""
  return [np.concatenate([each, *[each[-1:]] * (size - len(each))]) for each in arrays]
