"""The folder of compiled functions on disk, with which the second start of a program takes seconds.

    xla/          cache of JAX: executables, found by the lowered program
    numba/        machine code of the range coder (machine_code.py)
    programs/     executables, found by the function (executable_cache.py)
    params/       copies of parameters (coding/params_cache.py)
    tiles/        halos, crops and stages of tiles (coding/tile_measurements.py)
    seconds.json  compile times (compile_progress.py)

Cached files run code when they are loaded. The folder is used only if no other user can write to it (trusted_files.py).
If it cannot be used, this is reported in one line, and all functions are compiled. Files that cannot be read are
written again.
"""
import contextlib
import functools
import glob
import logging
import os
import re
import stat
import threading
import warnings
from typing import Any

import jax

from mlic_jax.runtime.trusted_files import WRITABLE, distrust, matching, remove_matching

SETTINGS: Any = jax.config  # its attributes are unknown to type checkers
log = logging.getLogger(__name__)

VARIABLE = "MLIC_JAX_CACHE"
MIN_COMPILE_SECONDS = 0.1  # functions that compile faster are not cached
# Warning of JAX, which names the function. JAX does not overwrite existing entries.
ENTRY_ERROR = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']*)': (.*)", re.DOTALL)

_reported: set[str] = set()
_hits = threading.local()  # .count: executables that JAX loaded from its cache in this thread


def folder(part: str = "") -> str | None:
  """Return the cache folder or its subfolder `part`: $MLIC_JAX_CACHE, by default ~/.cache/mlic_jax.

  None if the variable is empty, if there is no home directory, or if the folder cannot be used. The last case is logged
  once, except for a default folder that cannot be created or written to.
  """
  named = os.environ.get(VARIABLE)
  path = os.path.expanduser(os.path.join("~", ".cache", "mlic_jax") if named is None else named)
  if not path or named is None and path.startswith("~"):   # expanduser leaves the "~" without a home directory
    return None
  path = os.path.abspath(path)
  for each in (path, os.path.join(path, part)) if part else (path,):
    try:
      os.makedirs(each, mode=0o700, exist_ok=True)
      problem = distrust(os.stat(each))
      if not problem and not os.access(each, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(None, "cannot be written to")
    except OSError as error:
      if named is None:
        return None
      problem = error.strerror
    if problem:
      _report(f"{each}: {problem}")
      return None
  return os.path.join(path, part) if part else path


def enable() -> None:
  """Set `folder("xla")` as compilation cache of JAX.

  Call it before the first compilation, when JAX opens the cache. A directory that is already set
  (JAX_COMPILATION_CACHE_DIR) stays.
  """
  if SETTINGS.jax_compilation_cache_dir or not (path := folder("xla")):
    return
  _remove_untrusted_entries(path)
  _remove_entries_with_errors(path)
  jax.config.update("jax_compilation_cache_dir", path)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def num_hits() -> int:
  """Return the number of executables that JAX loaded from its cache in this thread, after the first call."""
  _count_hits()
  return getattr(_hits, "count", 0)


@functools.cache
def _count_hits() -> None:
  def on_event(event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      _hits.count = getattr(_hits, "count", 0) + 1
  jax.monitoring.register_event_listener(on_event)


def _report(problem: str) -> None:
  if problem not in _reported:
    _reported.add(problem)
    log.warning("compiling without a cache: %s; %s names another folder", problem, VARIABLE)


def _remove_untrusted_entries(path: str) -> None:
  """Remove entries of JAX that other users may have written.

  JAX leaves their mode to the umask, which does not matter in folders that other users cannot enter."""
  is_closed = not os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
  for entry in matching(path, "*-cache"):
    with contextlib.suppress(OSError):
      problem = distrust(os.stat(entry))
      if problem and not (is_closed and problem == WRITABLE):
        os.unlink(entry)


def _remove_entries_with_errors(path: str) -> None:
  """Remove entries that JAX fails to read or write from now on, so that it writes them again."""
  show = warnings.showwarning

  def remove_or_show(message, category, filename, lineno, file=None, line=None):
    error = ENTRY_ERROR.match(str(message))
    if error is None:
      show(message, category, filename, lineno, file, line)
      return
    action, name, reason = error.groups()
    if action == "writing":
      _report(f"{path}: {reason.splitlines()[0]}")
    with contextlib.suppress(OSError):
      remove_matching(path, f"{glob.escape(name)}-*-cache")

  warnings.showwarning = remove_or_show
