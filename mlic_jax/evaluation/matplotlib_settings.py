"""Imports matplotlib without the backend of the environment, and draws with its default settings.

Plots therefore look the same in every environment. MPLBACKEND (Jupyter kernels set it to a backend that may not be
installed here) and matplotlibrc (fonts, text.usetex, colors of the user) have no effect. Other code in the process is
not affected. Every module that needs matplotlib imports it from here.
"""
import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

from mlic_jax.errors import ConfigError


class MatplotlibSettingsError(ConfigError):
  """Matplotlib cannot read its settings file; the message is one line."""


@contextlib.contextmanager
def _without_environment_backend() -> Iterator[None]:
  backend = os.environ.pop("MPLBACKEND", None)
  try:
    yield
  except UnicodeDecodeError:
    raise MatplotlibSettingsError("matplotlib cannot read its settings file, matplotlibrc in the current folder or the "
                                  "user's config folder; wanted a file in UTF-8") from None
  finally:
    if backend is not None:
      os.environ["MPLBACKEND"] = backend


with _without_environment_backend():
  import matplotlib

__all__ = ["MatplotlibSettingsError", "default_settings", "matplotlib"]


@contextlib.contextmanager
def default_settings(**changes) -> Iterator[None]:
  """Applies matplotlib's default settings, with `changes`, within the context."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)   # about deprecated default settings
    defaults: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(defaults | changes):
      yield
