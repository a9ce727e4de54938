"""Batches of tiles on several devices of a process: each device computes its share of the batch."""
import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@functools.cache
def _mesh(batch: int) -> Mesh | None:
  """Returns the devices for batches of this size, as many as divide it evenly; None for a single one."""
  devices = jax.local_devices()
  count = math.gcd(batch, len(devices))
  return Mesh(np.array(devices[:count]), ("tiles",)) if count > 1 else None


def split(array: np.ndarray, batch: int) -> Any:
  """Puts the tiles of a batch (B, ...) on the devices; the array itself for a single device."""
  mesh = _mesh(batch)
  return array if mesh is None else jax.device_put(array, NamedSharding(mesh, PartitionSpec("tiles")))


def replicate(tree: Any, batch: int) -> Any:
  """Puts copies of arrays on the devices for batches of this size; the arrays themselves for a single device."""
  mesh = _mesh(batch)
  return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def gather(tree: Any, batch: int) -> Any:
  """Returns the arrays of a batch on the host; the arrays themselves for a single device."""
  return tree if _mesh(batch) is None else jax.device_get(tree)
