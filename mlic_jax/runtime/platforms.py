"""The platforms that jax computes on: whether those that JAX_PLATFORMS names are there."""
from typing import Any

import jax
import jax.extend

from mlic_jax.errors import ConfigError

CONFIG: Any = jax.config  # which declares no attributes


class PlatformError(ConfigError):
  """A platform that JAX_PLATFORMS names and that has no device here; one line with the platforms that are there."""


def check_platforms() -> None:
  """Raises PlatformError unless jax finds a device of a platform in JAX_PLATFORMS.

  Starts jax's backends; with several processes, to be called after jax.distributed.initialize.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:   # AssertionError: a platform for which jax has no plugin
    wanted = CONFIG.jax_platforms
    if not wanted:
      raise
    raise PlatformError(f"JAX_PLATFORMS={wanted}: {_reason(str(error))}; the platforms that are there: "
                        f"{', '.join(_platforms_there(wanted))}") from None


def _reason(message: str) -> str:
  """The first sentence of what jax says, without its advice."""
  return " ".join(message.partition(" (set JAX_PLATFORMS")[0].split()) or "no such device was found"


def _platforms_there(wanted: str) -> list[str]:
  """The platforms that jax finds on its own, the preferred one first. Leaves the setting as it was."""
  try:
    jax.config.update("jax_platforms", None)
    return sorted(jax.extend.backend.backends(), key=lambda name: name == "cpu")
  finally:
    jax.extend.backend.clear_backends()
    jax.config.update("jax_platforms", wanted)
