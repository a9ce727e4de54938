"""Parameters of modules, read without tracing their initializers."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

_is_without_initializers = contextvars.ContextVar("_is_without_initializers", default=False)


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
  """Return module.param(name, init, shape), but trace `init` only to create the parameter.

  Flax traces `init` in each application of a module, to compare shapes, which takes an eighth of the time to trace a
  training step. ScopeParamShapeError, as in Flax, if the stored parameter has another shape.
  """
  if not module.has_variable("params", name):
    zeros = lambda key, shape: jnp.zeros(shape, jnp.float32)
    return module.param(name, zeros if _is_without_initializers.get() else init, shape)
  value = nn.meta.unbox(module.get_variable("params", name))
  if value.shape != shape:
    assert module.scope is not None  # modules have a scope while they are applied
    raise errors.ScopeParamShapeError(name, module.scope.path_text, shape, value.shape)
  return value


@contextlib.contextmanager
def without_initializers() -> Iterator[None]:
  """Create parameters as zeros, float32, in this context, where shapes alone are wanted: tracing takes half as long."""
  token = _is_without_initializers.set(True)
  try:
    yield
  finally:
    _is_without_initializers.reset(token)
