"""Compiled functions are kept on disk, so that the second run of a program starts in seconds."""
import errno
import os
from typing import Any

import jax

SETTINGS: Any = jax.config  # which declares no attributes
VARIABLE = "MLIC_JAX_CACHE"
MIN_COMPILE_SECONDS = 0.1  # what compiles faster is not worth a file


def folder() -> str | None:
  """Where compiled functions are kept: $MLIC_JAX_CACHE, by default ~/.cache/mlic_jax; None when it is empty, and by
  default without a home, or one that can be written to. OSError for a folder that is named and cannot be written to."""
  named = os.environ.get(VARIABLE)
  path = os.path.expanduser(os.path.join("~", ".cache", "mlic_jax") if named is None else named)
  if not path or named is None and path.startswith("~"):   # who has no home keeps the "~"
    return None
  path = os.path.abspath(path)
  try:
    os.makedirs(path, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
      raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
  except OSError:
    if named is None:
      return None
    raise
  return path


def enable() -> None:
  """Keeps what jax compiles in `folder()`.

  To be called before anything is compiled: jax decides at the first compilation. A directory that jax was already
  given (JAX_COMPILATION_CACHE_DIR) is left alone.
  """
  if SETTINGS.jax_compilation_cache_dir or not (path := folder()):
    return
  jax.config.update("jax_compilation_cache_dir", path)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
