"""Measurements of transforms for tiles, cached on disk: halos, crops and stages take seconds for a large model.

Only the commands cache them, for models of this package's code. The cached numbers belong to one fingerprint, version
of the code and version of jax. Symbols do not depend on them.
"""
import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from typing import TypeVar

import jax

from mlic_jax.config import CodecConfig
from mlic_jax.model.registry import custom_modules
from mlic_jax.runtime import compilation_cache, startup
from mlic_jax.runtime.trusted_files import evict, read_trusted, write_trusted

MAX_BYTES = 2**20    # size of the folder; the least recently used files are evicted
T = TypeVar("T")


def cached(kind: str, config: CodecConfig, fingerprint: bytes, restore: Callable[[list | None], T],
           measure: Callable[[], T]) -> T:
  """Returns measure(), or its result in the cache.

  Args:
    kind: the name of the measurement.
    config, fingerprint: those of the model.
    restore: builds the result from its JSON, where tuples are lists. ValueError or TypeError if it cannot be.
    measure: measures; its result can be converted to JSON.
  """
  path = _path(kind, config, fingerprint)
  content = read_trusted(path) if path else None
  if content is not None:
    with contextlib.suppress(ValueError, TypeError):
      return restore(json.loads(content))
  found = measure()
  if path:
    with contextlib.suppress(OSError):     # a full disk: each process measures
      write_trusted(path, json.dumps(found).encode())
      evict(os.path.dirname(path), MAX_BYTES)
  return found


def _path(kind: str, config: CodecConfig, fingerprint: bytes) -> str | None:
  """Returns the file of a measurement; None if it is not cached."""
  folder = None if startup.code is None or custom_modules(config) else compilation_cache.folder("tiles")
  key = repr((kind, fingerprint.hex(), startup.code, jax.__version__)).encode()
  return os.path.join(folder, f"{kind}-{hashlib.sha256(key).hexdigest()[:32]}.json") if folder else None


def integers(found: list | None, count: int) -> list[int]:
  """Returns a list of `count` integers as it is. ValueError for anything else."""
  if not isinstance(found, list) or len(found) != count or any(type(each) is not int or each < 0 for each in found):
    raise ValueError(f"wanted {count} integers")
  return found
