"""Tests of parameters that are read without tracing their initializers."""
import jax
import jax.numpy as jnp
import pytest
from conftest import TINY, random_variables
from flax import errors
from flax import linen as nn

from mlic_jax.model import layers
from mlic_jax.model.lazy_params import parameter, without_initializers
from mlic_jax.model.mlic import build


class Scaled(nn.Module):
  size: int
  start: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x):
    return x * parameter(self, "scale", self.start, (self.size,))


def test_a_parameter_is_made_once_and_found_afterwards():
  def never(key, shape):
    raise AssertionError("asked what it would be at the beginning")

  variables = Scaled(3).init(jax.random.key(0), jnp.ones(3))
  assert Scaled(3, never).apply(variables, jnp.full(3, 2.0)).tolist() == [2, 2, 2]
  with pytest.raises(errors.ScopeParamNotFoundError):
    Scaled(3).apply({"params": {"other": 1}}, jnp.ones(3))


def test_where_shapes_alone_are_wanted_no_initializer_is_traced():
  def never(key, shape):
    raise AssertionError("asked what it would be at the beginning")

  shapes = lambda module: jax.eval_shape(module.init, jax.random.key(0), jnp.ones(3))
  with without_initializers():
    assert shapes(Scaled(3, never)) == shapes(Scaled(3))
  with pytest.raises(AssertionError, match="at the beginning"):
    shapes(Scaled(3, never))


def test_a_parameter_of_another_shape_is_named():
  class Whole(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Scaled(3, name="part")(x)

  variables = dict(params=dict(part=dict(scale=jnp.ones(4))))
  with pytest.raises(errors.ScopeParamShapeError, match=r'\(4,\) .* \(3,\) .* "scale" in "/part"'):
    Whole().apply(variables, jnp.ones(3))


def test_to_apply_a_codec_traces_no_initial_kernel(monkeypatch):
  variables = random_variables(TINY)
  monkeypatch.setattr(layers, "normal", None)
  jax.eval_shape(lambda x: build(TINY).apply(variables, x, 1.0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
