"""Tests of initial parameters that share one random generator."""
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from flax import linen as nn

from mlic_jax.model import initializers
from mlic_jax.model.initializers import initial_variables
from mlic_jax.model.layers import Conv
from mlic_jax.model.mlic import build
from mlic_jax.training.step import COMPILE_QUICKLY

# With masked kernels, kernels of inputs that are not decoded yet, and many others; more take long to compile apart.
CODEC = dataclasses.replace(TINY, transforms="helpers.light_transforms", contexts=("local_checkerboard", "channel"))


@pytest.fixture(scope="module")
def both():
  """Leaves by path: drawn together, and each apart, from a generator that compiles faster once for each leaf."""
  init = lambda key: build(CODEC).init(key, jnp.zeros((1, 64, 64, 3)), 1.0)
  compiled = partial(jax.jit, compiler_options=COMPILE_QUICKLY)
  found = (compiled(lambda: initial_variables(init, jax.random.key(1))),
           compiled(lambda: init(jax.random.key(1, impl="unsafe_rbg"))))
  return [jax.tree_util.tree_flatten_with_path(jax.device_get(each()))[0] for each in found]


def test_they_are_spread_as_those_that_are_drawn_apart(both):
  compared = 0
  for (path, together), (same_path, apart) in zip(*both, strict=True):
    assert path == same_path and together.shape == apart.shape and together.dtype == apart.dtype
    kind = path[-1].key
    if kind == "kernel":
      np.testing.assert_array_equal(together == 0, apart == 0)  # inputs that are not decoded yet
      if (drawn := together != 0).sum() > 2000:
        assert together[drawn].std() == pytest.approx(apart[drawn].std(), rel=0.1)
        assert abs(together[drawn].mean()) < 0.1 * together[drawn].std()
        assert np.abs(together).max() == pytest.approx(np.abs(apart).max(), rel=0.1)  # truncated alike
        compared += 1
    elif kind in ("beta", "gamma", "quantiles", "log_gain"):
      np.testing.assert_array_equal(together, apart)
  assert compared > 20


def test_no_number_is_drawn_for_two_kernels_and_another_seed_has_others(both):
  kernels = [np.abs(leaf[leaf != 0]) for path, leaf in both[0] if path[-1].key == "kernel"]
  relative = [kernel[:50] / kernel[:50].max() for kernel in kernels if kernel.size > 1000]
  assert len(np.unique(np.round(np.stack(relative), 5), axis=0)) == len(relative) > 20
  draws = lambda seed: jax.jit(lambda: initial_variables(
      lambda key: Conv(8).init(key, jnp.zeros((1, 4, 4, 3))), jax.random.key(seed)))()["params"]["kernel"]
  assert (draws(0) == draws(0)).all() and not (draws(0) == draws(1)).any()


def test_more_than_a_block_is_as_random_as_one(monkeypatch):
  monkeypatch.setattr(initializers, "BLOCK", 1000)
  kernel = initial_variables(lambda key: Conv(16).init(key, jnp.zeros((1, 4, 4, 32))), jax.random.key(0))
  numbers = np.ravel(kernel["params"]["kernel"])
  assert len(np.unique(numbers)) > 0.99 * len(numbers) and numbers.std() == pytest.approx((9 * 32)**-0.5, rel=0.05)


def test_a_custom_module_draws_its_kernels_itself():
  x, key = jnp.zeros((1, 4, 4, 3)), jax.random.key(0)
  own = lambda key: nn.Dense(64).init(key, x)
  expected, _ = jax.random.split(key)
  np.testing.assert_array_equal(initial_variables(own, key)["params"]["kernel"], own(expected)["params"]["kernel"])
