"""Check that the platforms in JAX_PLATFORMS are available."""
from typing import Any

import jax
import jax.extend

from mlic_jax.errors import ConfigError

CONFIG: Any = jax.config  # its attributes are unknown to type checkers


class PlatformError(ConfigError):
  """JAX_PLATFORMS names a platform without devices; one line with the available platforms."""


def check_platforms() -> None:
  """Raise a PlatformError unless JAX finds a device of a platform in JAX_PLATFORMS.

  It starts the backends of JAX. With several processes, call it after jax.distributed.initialize.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:   # AssertionError: a platform without plugin
    wanted = CONFIG.jax_platforms
    if not wanted:
      raise
    raise PlatformError(f"JAX_PLATFORMS={wanted}: {_reason(str(error))}; the platforms that are there: "
                        f"{', '.join(_platforms_there(wanted))}") from None


def _reason(message: str) -> str:
  """Return the first sentence of the message of JAX, without its advice."""
  return " ".join(message.partition(" (set JAX_PLATFORMS")[0].split()) or "no such device was found"


def _platforms_there(wanted: str) -> list[str]:
  """Return the platforms that JAX finds by default, the preferred one first. It restores the setting."""
  try:
    jax.config.update("jax_platforms", None)
    return sorted(jax.extend.backend.backends(), key=lambda name: name == "cpu")
  finally:
    jax.extend.backend.clear_backends()
    jax.config.update("jax_platforms", wanted)
