"""Tiles in batches of one size, for functions that are compiled once."""
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
  """`size` items at a time; the last time what is left."""
  items = iter(items)
  while batch := list(itertools.islice(items, size)):
    yield batch


def filled(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
  """Returns the arrays with their last element repeated up to `size` along the first axis."""
  return [np.concatenate([each, *[each[-1:]] * (size - len(each))]) for each in arrays]
