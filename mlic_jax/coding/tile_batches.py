"""Tiles in batches of one size, for functions that are compiled once."""
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from mlic_jax.coding import tile_devices

T = TypeVar("T")


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
  """`size` items at a time; the last time what is left."""
  for start in range(0, len(items), size):
    yield items[start:start + size]


def placed(arrays: Sequence[np.ndarray], size: int) -> list[Any]:
  """Returns the arrays with their last element repeated up to `size` along the first axis, on the devices."""
  return [tile_devices.split(np.concatenate([each, *[each[-1:]] * (size - len(each))]), size) for each in arrays]
