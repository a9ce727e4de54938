"""Says what is being compiled before it is, and how long that took before."""
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mlic_jax.atomic_io import write_whole
from mlic_jax.runtime import compilation_cache

NAME = "seconds.json"   # beside what was compiled: seconds of the first call and of the last one, by digests
ENTRIES = 1000          # in the file, the newest
WORTH_SAYING = 5        # seconds


@contextlib.contextmanager
def compiling(what: str, of: Any, say: Callable[[str], None], expected: str) -> Iterator[None]:
  """Around the call that compiles, or that reads what was compiled from the disk.

  Args:
    what: is compiled, in words.
    of: what the time depends on besides, as JSON can hold it.
    say: is given the line, unless the last time was too short for one.
    expected: how long it takes, in words, for the first time.
  """
  described = [what, of, jax.__version__, jax.devices()[0].device_kind, jax.device_count()]
  key = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]
  known, again = _read(), key + " again"
  first, last = known.get(key), known.get(again)
  if first is None:
    say(f"compiling {what}: {expected} the first time")
  elif last is None and first >= WORTH_SAYING:
    say(f"compiling {what}: {first:.0f} s the first time, less if it is on disk now")
  elif last is not None and last >= WORTH_SAYING:
    say(f"compiling {what}: {last:.0f} s the last time")
  start = time.monotonic()
  yield
  _note(key if first is None else again, round(time.monotonic() - start, 1))


def _path() -> str | None:
  folder = compilation_cache.folder()
  return folder and os.path.join(folder, NAME)


def _read() -> dict[str, float]:
  """Nothing where there is no such file, or another one."""
  try:
    with open(_path() or os.devnull, encoding="utf-8") as file:
      found = json.load(file)
    return {key: float(seconds) for key, seconds in found.items()}
  except (OSError, ValueError, TypeError, AttributeError):
    return {}


def _note(key: str, seconds: float) -> None:
  path = _path()
  if path is None:
    return
  newest = [*[each for each in _read().items() if each[0] != key], (key, seconds)][-ENTRIES:]
  with contextlib.suppress(OSError):   # a full disk: the next line says what is expected, and no more is lost
    write_whole(path, json.dumps(dict(newest)) + "\n")
