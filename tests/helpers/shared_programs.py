"""Programs that several training runs of a process share, as the executables on disk are shared."""
from collections.abc import Callable
from typing import Any

import jax

from mlic_jax.training import loop
from mlic_jax.training import step as step_module

_usual = step_module.with_executable_cache
_programs: dict[Any, Callable] = {}


def with_programs_of_this_process(function: Callable, name: str, description: str | None, jit: Callable = jax.jit,
                                  **options: Any) -> Callable:
  """Stands for with_executable_cache: a program with the same name and description is compiled once.

  The description of a program is everything that it is traced from (runtime/executable_cache.py), but for a training
  step that a test replaces."""
  if description is None:
    return _usual(function, name, description, jit, **options)
  key = name, description, loop.make_train_step
  if key not in _programs:
    _programs[key] = _usual(function, name, description, jit, **options)
  return _programs[key]
