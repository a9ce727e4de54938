"""Tests of GELU: accuracy, gradients and dtypes."""
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from mlic_jax.model.activation import LIMIT, P, Q, gelu

X = np.concatenate([np.linspace(-12, 12, 9999), np.geomspace(1e-8, 1e3, 999), -np.geomspace(1e-8, 1e3, 999)])


def test_the_rational_function_is_the_normal_distribution_to_an_eighth_of_a_rounding_of_float32():
  x = np.clip(X, -LIMIT, LIMIT)
  share = 0.5 + x * np.polyval(P[::-1], x**2) / np.polyval(Q[::-1], x**2)
  inside = np.abs(X) <= LIMIT
  assert np.abs(share - ndtr(X))[inside].max() <= 2.0**-24 / 8
  assert ndtr(-LIMIT) <= 2.0**-23  # what is left out beyond


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


def test_no_function_that_compilers_have_their_own_of_is_in_gelu():
  text = jax.jit(gelu).lower(jnp.ones(3)).as_text()
  assert "multiply" in text and not any(name in text for name in ("erf", "tanh", "exponential", "logistic"))


FAR = """
import jax, numpy as np
from mlic_jax.model.activation import LIMIT, gelu
x = np.concatenate([np.linspace(LIMIT, 20, 999), np.geomspace(20, 1e6, 999)]).astype(np.float32)
assert np.array_equal(jax.jit(gelu)(x), x) and not np.any(jax.jit(gelu)(-x)), jax.jit(gelu)(-x).min()
"""


@pytest.mark.parametrize("processor", ["AVX2", "SSE4_2"])  # with fused multiplications and without
def test_far_from_zero_gelu_leaves_no_rounding_that_would_be_another_one_on_another_processor(processor):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_cpu_max_isa={processor}"}
  run = subprocess.run([sys.executable, "-c", FAR], env=environment, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
