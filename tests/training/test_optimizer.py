"""Claims about what the optimisers compute in ways of their own, against the ways that are usual."""
import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from mlic_jax.training.clipping import clip_by_norm, global_norm
from mlic_jax.training.muon import COEFFICIENTS, REPETITIONS, orthogonalize


@pytest.mark.parametrize("shapes", [[(3, 3, 48, 32), (48,), ()], [(5, 7), (4097,), (64, 65)]])
def test_the_norm_of_a_gradient_and_what_it_is_clipped_to_are_those_of_optax(shapes):
  rng = np.random.default_rng(0)
  tree = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
  norm = optax.global_norm(tree)
  assert float(jax.jit(global_norm)(tree)) == pytest.approx(float(norm), rel=2e-6)
  for max_norm in (0.5 * norm, 2 * norm):
    expected = optax.clip_by_global_norm(max_norm).update(tree, optax.EmptyState())[0]
    for known in (dict(norm=norm), {}):
      clipped, _ = clip_by_norm(max_norm).update(tree, optax.EmptyState(), **known)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6), clipped, expected)
  bad = [*tree, jnp.asarray([1.0, np.nan])]
  assert np.isnan(global_norm(bad)) and np.isinf(global_norm([*tree, jnp.full(3, np.inf)]))


@pytest.mark.parametrize("shape", [(2, 24, 72), (1, 24, 30)])
def test_the_step_of_muon_is_the_same_by_way_of_the_gram_matrix(shape):
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  expected = optax.contrib._muon.orthogonalize_via_newton_schulz(
      x, jnp.array(COEFFICIENTS), REPETITIONS, dimension_numbers=optax.contrib.MuonDimensionNumbers(1, 2))
  np.testing.assert_allclose(orthogonalize(x), expected, atol=1e-5)
