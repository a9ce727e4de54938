"""Parameters of modules, which are found without asking what they would be at the beginning of a training."""

from collections.abc import Callable

import jax
from flax import errors
from flax import linen as nn


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
  """module.param(name, init, shape), for what every slice has: init is traced only where the parameter is made.

  Flax traces it wherever a module is applied, to compare shapes, which was an eighth of the time that it took to trace
  a training step. ScopeParamShapeError, as Flax has it, for a parameter of another shape.
  """
  if not module.has_variable("params", name):
    return module.param(name, init, shape)
  value = nn.meta.unbox(module.get_variable("params", name))
  if value.shape != shape:
    assert module.scope is not None  # as it is in a module that is applied
    raise errors.ScopeParamShapeError(name, module.scope.path_text, shape, value.shape)
  return value
