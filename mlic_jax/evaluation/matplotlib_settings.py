"""Imports matplotlib without the backend of the environment, and draws with its default settings.

Plots look alike everywhere and can be drawn everywhere: MPLBACKEND (which every Jupyter kernel sets, to a backend that
this environment may not have) and matplotlibrc (fonts, text.usetex, colors of the user) change nothing. Other code in
the process keeps its own settings. Every module that needs matplotlib imports it from here.
"""
import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

from mlic_jax.errors import ConfigError


class MatplotlibSettingsError(ConfigError):
  """A settings file that matplotlib cannot read; one line."""


@contextlib.contextmanager
def _without_environment_backend() -> Iterator[None]:
  backend = os.environ.pop("MPLBACKEND", None)
  try:
    yield
  except UnicodeDecodeError:
    raise MatplotlibSettingsError("matplotlib cannot read its settings file, matplotlibrc in this folder or in yours; "
                                  "wanted a file in UTF-8") from None
  finally:
    if backend is not None:
      os.environ["MPLBACKEND"] = backend


with _without_environment_backend():
  import matplotlib

__all__ = ["MatplotlibSettingsError", "default_settings", "matplotlib"]


@contextlib.contextmanager
def default_settings(**changes) -> Iterator[None]:
  """Makes matplotlib's settings those of a fresh installation, with `changes`, while the block runs."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)   # of settings that nobody asked for
    defaults: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(defaults | changes):
      yield
