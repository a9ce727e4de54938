"""Parts of a codec by name: a file of this package, or an import path of one's own."""

import difflib
import importlib
import importlib.util
import os
import pkgutil
import sys
from types import ModuleType
from typing import Any

from mlic_jax.config import CodecConfig


class PartError(ValueError):
  """A part of a codec that there is not; one line with its name and where it was looked for."""


def available(package: str) -> list[str]:
  """The names of the files of a package."""
  return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


def find(name: str, package: str, wanted: tuple[str, ...]) -> ModuleType:
  """The module of a part.

  Args:
    name: of a file of `package`; or, with a dot in it, an import path, found from the current directory too.
    package: where the project has such parts, such as "mlic_jax.model.contexts".
    wanted: names that the module has to have.

  PartError when there is none, or when it lacks something. What goes wrong inside of it is its own.
  """
  kind = package.rpartition(".")[2].removesuffix("s")
  if "." in name:
    if os.getcwd() not in sys.path and "" not in sys.path:
      sys.path.append(os.getcwd())
    try:
      missing = importlib.util.find_spec(name) is None
    except ModuleNotFoundError as error:  # of a package above it
      if not name.startswith(error.name or "?"):
        raise
      missing = True
    if missing:
      raise PartError(f"{kind} {name!r}: no such module; looked for it in {os.getcwd()} and among what is installed")
    module = importlib.import_module(name)
  else:
    if name not in available(package):
      near = difflib.get_close_matches(name, available(package), n=1, cutoff=0.0)[0]
      raise PartError(f"no {kind} {name!r} in {package.replace('.', '/')}/; the nearest is {near!r}, of "
                      f"{available(package)}; a name with a dot is an import path")
    module = importlib.import_module(f"{package}.{name}")
  for attribute in wanted:
    if not hasattr(module, attribute):
      raise PartError(f"{kind} {name!r}: {module.__file__} has no {attribute}; wanted {', '.join(wanted)}")
  return module


def custom_modules(config: CodecConfig) -> list[str]:
  """The import paths in a config: modules outside of this package, which building the codec imports."""
  return [name for name in (config.transforms, *config.contexts) if "." in name]


def described(module: Any) -> str | None:
  """A codec module of this package, as it prints; None when a part of it is somebody's own, whose code is not ours."""
  return None if custom_modules(module.config) else repr(module)


def options(config: CodecConfig, module: ModuleType) -> dict[str, Any]:
  """The settings of a part: its OPTIONS, with those of `config.options` that it knows in their place."""
  own = getattr(module, "OPTIONS", {})
  return own | {name: value for name, value in dict(config.options).items() if name in own}


def check_options(config: CodecConfig, modules: list[ModuleType]) -> None:
  """PartError when a setting of `config.options` is none of any part's, or of another kind than its default."""
  known = {name: default for module in modules for name, default in getattr(module, "OPTIONS", {}).items()}
  for name, value in dict(config.options).items():
    if name not in known:
      raise PartError(f"options has {name!r}, which no part of this codec reads; they read {sorted(known)}")
    if (wanted := type(known[name])) in (bool, int) and type(value) is not wanted:
      raise PartError(f"options has {name}={value!r}; wanted {'True or False' if wanted is bool else 'an integer'}")
