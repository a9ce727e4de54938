"""Compiled functions are kept on disk, so that the second run of a program starts in seconds."""
import os
from pathlib import Path

import jax

VARIABLE = "MLIC_JAX_CACHE"
MIN_COMPILE_SECONDS = 0.1  # what compiles faster is not worth a file


def folder() -> str | None:
  """Where compiled functions are kept: $MLIC_JAX_CACHE, by default ~/.cache/mlic_jax; None when it is empty."""
  named = os.environ.get(VARIABLE, str(Path.home() / ".cache" / "mlic_jax"))
  return os.path.abspath(os.path.expanduser(named)) if named else None


def enable() -> None:
  """Keeps what jax compiles in `folder()`.

  To be called before anything is compiled: jax decides at the first compilation. A directory that jax was already
  given (JAX_COMPILATION_CACHE_DIR) is left alone.
  """
  if not folder() or jax.config.jax_compilation_cache_dir:
    return
  jax.config.update("jax_compilation_cache_dir", folder())
  jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
