"""Copies of parameters in the cache folder, which are read in a fraction of the time that Orbax takes.

A copy belongs to the files of one model directory, as they are: it is found by their names, sizes, times and inodes,
and by the fingerprint in config.json. load_model checks the fingerprint of what it has read, so that a damaged copy is
not used. Copies are made in the commands only, of local model directories that have a fingerprint.
"""
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.runtime import compilation_cache, startup
from mlic_jax.runtime.trusted_files import evict, read_trusted, write_trusted

FORMAT = 1           # of the copies
ALIGNMENT = 64       # bytes
MAX_BYTES = 2**30    # size of the folder; the least recently used copies are evicted

Arrays = Iterable[tuple[tuple[str, ...], np.ndarray]]   # the names of nested dicts, and a parameter


def path_of_copy(params: Path, fingerprint: Any) -> str | None:
  """Returns the path for the copy of the folder params/ of a model directory; None if there can be no copy.

  fingerprint: that of config.json, or anything else if it has none."""
  if startup.code is None or not isinstance(fingerprint, str):
    return None
  try:
    files = []
    for directory, folders, names in os.walk(params):
      for name in (*folders, *names):
        status = os.stat(os.path.join(directory, name))
        # A write changes the last two times, also if the first one is set back, as `cp -p` does.
        files.append((os.path.relpath(os.path.join(directory, name), params), status.st_size, status.st_mtime_ns,
                      status.st_ctime_ns, status.st_ino))
  except OSError:   # reading them reports it
    return None
  folder = compilation_cache.folder("params") if files else None
  key = repr((FORMAT, fingerprint, os.path.realpath(params), sorted(files))).encode(errors="surrogateescape")
  return os.path.join(folder, hashlib.sha256(key).hexdigest()[:32]) if folder else None


def read(path: str) -> dict[str, Any] | None:
  """Returns the parameters in a copy, nested dicts of read-only arrays; None if it is missing or not usable."""
  content = read_trusted(path)
  if content is None:
    return None
  params: dict[str, Any] = {}
  try:
    start = int.from_bytes(content[:8], "little")
    for names, dtype, shape, offset in json.loads(content[8:start]):
      parent = params
      for name in names[:-1]:
        parent = parent.setdefault(name, {})
      count = int(np.prod(shape, dtype=np.int64))
      parent[names[-1]] = np.frombuffer(content, np.dtype(dtype), count, start + offset).reshape(shape)
  except Exception:   # damaged content can raise any error; the parameters are then read from the model directory
    return None
  with contextlib.suppress(OSError):
    os.utime(path)
  return params


def write(path: str, arrays: Arrays) -> None:
  """Writes a copy, and evicts older ones. A copy that is too large, or does not fit on the disk, is not written."""
  entries, parts, offset = [], [], 0
  for names, value in arrays:
    data = np.ascontiguousarray(value).tobytes()
    entries.append((names, str(value.dtype), value.shape, offset))
    parts.append(data + bytes(-len(data) % ALIGNMENT))
    offset += len(parts[-1])
  header = json.dumps(entries).encode()
  header += b" " * (-(8 + len(header)) % ALIGNMENT)
  if offset > MAX_BYTES:
    return
  with contextlib.suppress(OSError):
    write_trusted(path, b"".join([(8 + len(header)).to_bytes(8, "little"), header, *parts]))
    evict(os.path.dirname(path), MAX_BYTES)
