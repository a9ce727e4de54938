"""Claims about single layers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from mlic_jax.model.layers import gelu

X = np.concatenate([np.linspace(-12, 12, 9999), np.geomspace(1e-8, 1e3, 999), -np.geomspace(1e-8, 1e3, 999)])


@pytest.mark.parametrize("dtype, rounding", [(jnp.float32, 0), (jnp.bfloat16, 2.0**-8)])
def test_gelu_is_exact_to_a_few_roundings_of_x_in_float32(dtype, rounding):
  x = jnp.asarray(X, dtype)
  found, wide = gelu(x), np.asarray(x, np.float64)
  exact = wide * ndtr(wide)
  assert found.dtype == dtype
  assert np.all(np.abs(np.asarray(found, np.float64) - exact) <= 2.0**-22 * np.abs(wide) + rounding * np.abs(exact))


def test_the_gradient_of_gelu_is_that_of_the_definition():
  x = X.astype(np.float32)
  exact = ndtr(X) + X * np.exp(-X**2 / 2) / np.sqrt(2 * np.pi)
  np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), exact, atol=5e-7)
