"""Messages before a compilation, with the time that it took before."""
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

NAME = "seconds.json"   # in the cache folder: seconds of the first call and of the last one, by digest
ENTRIES = 1000          # newest entries in the file
WORTH_SAYING = 5        # minimum of seconds for a message


@contextlib.contextmanager
def compiling(what: str, of: Any, say: Callable[[str], None], expected: str) -> Iterator[None]:
  """Context manager around a call that compiles, or that reads a compiled program from disk.

  Args:
    what: name of the compiled program.
    of: other inputs that the time depends on, as JSON.
    say: is called with the message, unless the last time was short.
    expected: description of the expected time of the first call.
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
  """Return the entries; none if the file is missing or invalid."""
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
  with contextlib.suppress(OSError):   # a full disk costs the entry only
    write_whole(path, json.dumps(dict(newest)) + "\n")
