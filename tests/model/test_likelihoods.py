"""Likelihoods of y and z against NumPy references in float64."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, ndtr

from mlic_jax.model.likelihoods import FactorizedPrior, bits, gaussian_bits, scale_index
from mlic_jax.model.scale_table import SCALE_MIN, scale_table

compiled_bits = jax.jit(gaussian_bits)


@functools.cache
def symmetric_prior(channels: int = 2) -> dict:
  """Parameters of a density of z that is exactly symmetric around 0: no bias, no gates. Tests share them."""
  init = jax.jit(lambda key: FactorizedPrior(channels).init(key, jnp.zeros(channels), method="bits"))
  params = jax.device_get(init(jax.random.key(0)))["params"]
  return {name: np.zeros_like(value) if name.startswith(("bias", "factor")) else value
          for name, value in params.items()}


def random_prior(channels: int = 3) -> dict:
  params, rng = symmetric_prior(channels), np.random.default_rng(0)
  return {name: value + rng.normal(0, 0.5, value.shape).astype(np.float32) if name != "quantiles" else value
          for name, value in params.items()}


def reference_likelihood(params: dict, v: np.ndarray) -> np.ndarray:
  """c(v + 1/2) - c(v - 1/2), c the monotonic network of Balle et al. (ICLR 2018, appendix 6.1), channel by channel."""
  p = {name: np.asarray(value, np.float64) for name, value in params.items()}
  def cumulative(v):
    x = v[..., None]                                       # (..., channels, width)
    for i in range(5):
      x = np.einsum("coi,...ci->...co", np.log1p(np.exp(p[f"matrix{i}"])), x) + p[f"bias{i}"]
      if i < 4:
        x = x + np.tanh(p[f"factor{i}"]) * np.tanh(x)
    return expit(x[..., 0])
  return cumulative(v + 0.5) - cumulative(v - 0.5)


@pytest.mark.parametrize("prior", [symmetric_prior, random_prior])
def test_the_likelihood_of_z_is_the_difference_of_the_cumulative_network(prior):
  params = prior()
  channels = len(params["quantiles"])
  v = np.repeat(np.linspace(-30, 30, 121)[:, None], channels, axis=1)
  run = jax.jit(lambda params, v: [FactorizedPrior(channels).apply({"params": params}, v, method=method)
                                   for method in ("likelihood", "bits")])
  wanted, (likelihood, of_bits) = reference_likelihood(params, v), run(params, v.astype(np.float32))
  np.testing.assert_allclose(likelihood, wanted, rtol=1e-3, atol=1e-8)
  np.testing.assert_allclose(of_bits, -np.log2(np.maximum(wanted, 1e-9)), atol=2e-3)


def test_the_middle_of_a_symmetric_density_costs_as_much_as_beside_it():
  """The sum of the two logits is exactly 0 there, and has no sign."""
  params, v = symmetric_prior(), np.repeat(np.float32([[0.0], [1e-3]]), 2, axis=1)
  cost, pull_back = jax.vjp(lambda v: FactorizedPrior(2).apply({"params": params}, v, method="bits"), v)
  np.testing.assert_allclose(*np.asarray(cost), atol=1e-3)
  slope = np.asarray(*pull_back(np.ones_like(cost)))[0].sum()
  assert abs(slope) < 1e-3 and np.isfinite(slope)


def test_a_compiled_likelihood_is_right_in_the_middle_of_a_symmetric_density():
  """There the sum of the logits, whose sign chooses the side, is rounding errors, and kernels round it differently."""
  params = symmetric_prior()
  likelihood = lambda v: FactorizedPrior(2).apply({"params": params}, v, method="likelihood")
  v = np.zeros((2, 2), np.float32)  # of the shape in the test above, whose operations are compiled
  np.testing.assert_allclose(jax.jit(likelihood)(v), likelihood(v), rtol=1e-5)


@pytest.mark.parametrize("scale", [SCALE_MIN, 0.5, 3.0, 40.0])
def test_the_bits_of_y_are_those_of_a_gaussian_over_unit_bins(scale):
  v, mean = np.linspace(-6, 6, 49) * (scale + 0.5), 0.3
  likelihood = np.abs(ndtr((0.5 - abs(v - mean)) / scale) - ndtr((-0.5 - abs(v - mean)) / scale))
  got = compiled_bits(v.astype(np.float32), mean, scale)
  np.testing.assert_allclose(got, -np.log2(np.maximum(likelihood, 1e-9)), rtol=1e-3, atol=1e-3)


def test_a_nearly_impossible_value_costs_30_bits():
  """A likelihood below 1e-9 is raised to it: the escape code of a file costs about as much."""
  np.testing.assert_allclose(bits(jnp.array([0.0, 1e-12, 1e-9, 1e-7])), -np.log2([1e-9, 1e-9, 1e-9, 1e-7]), rtol=1e-5)
  np.testing.assert_allclose(compiled_bits(np.float32([8, 50]), 0.0, 1.0), -np.log2([1e-9, 1e-9]), rtol=1e-5)


def test_the_gradient_of_impossible_values_leads_back():
  slope = jax.jit(jax.grad(lambda v: gaussian_bits(v, 0.0, jnp.float32(1.0))))
  assert slope(3.0) > 0 > slope(-3.0)
  difference = compiled_bits(2.001, 0.0, 1.0) - compiled_bits(1.999, 0.0, 1.0)
  np.testing.assert_allclose(slope(2.0), difference / 0.002, rtol=0.01)


@pytest.mark.parametrize("scale", [SCALE_MIN, 1.0, 40.0])
def test_the_gaussian_bins_sum_to_one(scale):
  symbols = np.arange(-400, 401, dtype=np.float32)
  likelihood = 2.0**-np.asarray(compiled_bits(symbols + np.float32(0.3), 0.3, scale))
  np.testing.assert_allclose(likelihood[likelihood > 2e-9].sum(), 1, atol=1e-4)


def test_a_scale_takes_the_first_table_row_that_is_not_below_it():
  table = scale_table()
  scales = jnp.array([SCALE_MIN, table[10], table[10] * 1.0001, 300.0])
  np.testing.assert_array_equal(scale_index(scales), [0, 10, 11, 63])


def test_the_cumulative_of_z_rises_and_its_bins_sum_to_one():
  prior = FactorizedPrior(channels=3)
  variables = jax.jit(lambda key: prior.init(key, jnp.zeros(3), method="bits"))(jax.random.key(1))
  v = np.tile(np.arange(-300, 301, dtype=np.float32)[:, None], (1, 3))
  logits, likelihood = jax.jit(lambda v: [prior.apply(variables, v, method=method)
                                          for method in ("cumulative_logits", "likelihood")])(v)
  assert np.all(np.diff(logits, axis=0) > 0)
  np.testing.assert_allclose(np.sum(likelihood, axis=0), 1, atol=1e-3)


def test_the_aux_loss_is_the_distance_of_the_quantiles_from_their_probabilities():
  """5e-10, 1/2 and 1 - 5e-10: a mass of 1e-9 is outside of the outer ones (Balle's tail mass)."""
  params, prior = random_prior(), FactorizedPrior(3)
  logits, loss, medians = jax.device_get(jax.jit(lambda params: [
      prior.apply({"params": params}, params["quantiles"].T, method="cumulative_logits"),
      prior.apply({"params": params}, method="aux_loss"), prior.apply({"params": params}, method=lambda p: p.medians)])(
      params))
  wanted = sum(abs(logits[i] - target).sum() for i, target in enumerate(np.log([5e-10, 1, (1 - 5e-10) / 5e-10])))
  np.testing.assert_allclose(loss, wanted, rtol=1e-4)
  np.testing.assert_array_equal(medians, params["quantiles"][:, 1])
