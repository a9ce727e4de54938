"""The softmax with a short derivative, against that of JAX."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.in_numpy import in_numpy

from mlic_jax.model.softmax import softmax

X = np.random.default_rng(0).normal(0, 9, (3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("axis", [-1, -2])
def test_values_and_derivatives_are_those_of_jax(axis):
  def both(function):
    run = lambda x: jnp.sin(function(x, axis)).sum()
    return in_numpy(lambda x, dx: (jax.value_and_grad(run)(x), jax.jvp(run, (x,), (dx,))))(X, X[::-1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both(softmax), both(jax.nn.softmax))


def test_large_scores_do_not_overflow():
  np.testing.assert_allclose(in_numpy(softmax)(np.float32([1e4, 1e4, -1e4])), [0.5, 0.5, 0])


def test_the_gradient_keeps_one_array_of_the_size_of_the_result():
  _, backward = jax.vjp(softmax, X)
  assert sum(leaf.size for leaf in jax.tree.leaves(backward)) == X.size
