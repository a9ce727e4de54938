"""Parameters of modules, read without tracing their initializers."""

from collections.abc import Callable

import jax
from flax import errors
from flax import linen as nn


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
  """Return module.param(name, init, shape), but trace `init` only to create the parameter.

  Flax traces `init` in each application of a module, to compare shapes, which takes an eighth of the time to trace a
  training step. ScopeParamShapeError, as in Flax, if the stored parameter has another shape.
  """
  if not module.has_variable("params", name):
    return module.param(name, init, shape)
  value = nn.meta.unbox(module.get_variable("params", name))
  if value.shape != shape:
    assert module.scope is not None  # modules have a scope while they are applied
    raise errors.ScopeParamShapeError(name, module.scope.path_text, shape, value.shape)
  return value
