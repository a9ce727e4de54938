"""Transforms and contexts by name: a file of this package, or the import path of a custom module."""

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
  """A transform, context or option of a config that does not exist; one line with its name and the search path."""


def available(package: str) -> list[str]:
  """Return the names of the modules of a package."""
  return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


def find(name: str, package: str, required: tuple[str, ...]) -> ModuleType:
  """Import the module of a transform, context or distribution.

  Args:
    name: a module of `package`; with a dot, an import path, which may be relative to the current directory.
    package: the package with such modules, such as "mlic_jax.model.contexts".
    required: names that the module has to define.

  PartError if there is no such module, or if it lacks a name. Errors inside the module are passed on.
  """
  kind = package.rpartition(".")[2].removesuffix("s")
  if "." in name:
    if os.getcwd() not in sys.path and "" not in sys.path:
      sys.path.append(os.getcwd())
    try:
      missing = importlib.util.find_spec(name) is None
    except ModuleNotFoundError as error:  # of a parent package
      if not name.startswith(error.name or "?"):
        raise
      missing = True
    if missing:
      raise PartError(f"{kind} {name!r}: no such module; looked for it in {os.getcwd()} and in the installed packages")
    module = importlib.import_module(name)
  else:
    if name not in available(package):
      near = difflib.get_close_matches(name, available(package), n=1, cutoff=0.0)[0]
      raise PartError(f"no {kind} {name!r} in {package.replace('.', '/')}/; the nearest is {near!r}, of "
                      f"{available(package)}; a name with a dot is an import path")
    module = importlib.import_module(f"{package}.{name}")
  for attribute in required:
    if not hasattr(module, attribute):
      raise PartError(f"{kind} {name!r}: {module.__file__} has no {attribute}; wanted {', '.join(required)}")
  return module


def custom_modules(config: CodecConfig) -> list[str]:
  """Return the import paths in a config: custom modules, which `build` imports."""
  return [name for name in (config.transforms, *config.contexts, config.distribution) if "." in name]


def description(module: Any) -> str | None:
  """Return the repr of a codec module, as a key of cached executables; None if it has custom modules."""
  return None if custom_modules(module.config) else repr(module)


def options(config: CodecConfig, module: ModuleType) -> dict[str, Any]:
  """Return the OPTIONS of a module, updated by those of `config.options` that it has."""
  own = getattr(module, "OPTIONS", {})
  return own | {name: value for name, value in dict(config.options).items() if name in own}


def check_options(config: CodecConfig, modules: list[ModuleType]) -> None:
  """Raise a PartError if an option in `config.options` belongs to no module, or has another type than its default."""
  known = {name: default for module in modules for name, default in getattr(module, "OPTIONS", {}).items()}
  for name, value in dict(config.options).items():
    if name not in known:
      raise PartError(f"options has {name!r}, which no part of this codec reads; known are {sorted(known)}")
    if (kind := type(known[name])) in (bool, int) and type(value) is not kind:
      raise PartError(f"options has {name}={value!r}; wanted {'True or False' if kind is bool else 'an integer'}")
