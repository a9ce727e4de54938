"""Likelihoods of y and z against NumPy references in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, ndtr

from mlic_jax.model.likelihoods import FactorizedPrior, bits, gaussian_bits, scale_index
from mlic_jax.model.scale_table import SCALE_MIN, scale_table


def symmetric_prior(channels: int = 2) -> dict:
  """Parameters of a density of z that is exactly symmetric around 0: no bias, no gates."""
  init = jax.jit(lambda key: FactorizedPrior(channels).init(key, jnp.zeros(channels), method="bits"))
  params = init(jax.random.key(0))["params"]
  return {name: jnp.zeros_like(value) if name.startswith(("bias", "factor")) else value
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
  run = lambda method: FactorizedPrior(channels).apply({"params": params}, v.astype(np.float32), method=method)
  wanted = reference_likelihood(params, v)
  np.testing.assert_allclose(run("likelihood"), wanted, rtol=1e-3, atol=1e-8)
  np.testing.assert_allclose(run("bits"), -np.log2(np.maximum(wanted, 1e-9)), atol=2e-3)


def test_the_middle_of_a_symmetric_density_costs_as_much_as_beside_it():
  """The sum of the two logits is exactly 0 there, and has no sign."""
  params = symmetric_prior()
  cost = lambda v: FactorizedPrior(2).apply({"params": params}, jnp.full(2, v, jnp.float32), method="bits")
  np.testing.assert_allclose(cost(0.0), cost(1e-3), atol=1e-3)
  slope = jax.grad(lambda v: cost(v).sum())
  assert abs(slope(0.0)) < 1e-3 and np.isfinite(slope(0.0))


def test_a_compiled_likelihood_is_right_in_the_middle_of_a_symmetric_density():
  """There the sum of the logits, whose sign chooses the side, is rounding errors, and kernels round it differently."""
  params = symmetric_prior()
  likelihood = lambda v: FactorizedPrior(2).apply({"params": params}, jnp.full(2, v, jnp.float32), method="likelihood")
  np.testing.assert_allclose(jax.jit(likelihood)(0.0), likelihood(0.0), rtol=1e-5)


@pytest.mark.parametrize("scale", [SCALE_MIN, 0.5, 3.0, 40.0])
def test_the_bits_of_y_are_those_of_a_gaussian_over_unit_bins(scale):
  v, mean = np.linspace(-6, 6, 49) * (scale + 0.5), 0.3
  likelihood = np.abs(ndtr((0.5 - abs(v - mean)) / scale) - ndtr((-0.5 - abs(v - mean)) / scale))
  got = gaussian_bits(jnp.asarray(v, jnp.float32), mean, scale)
  np.testing.assert_allclose(got, -np.log2(np.maximum(likelihood, 1e-9)), rtol=1e-3, atol=1e-3)


def test_a_nearly_impossible_value_costs_30_bits():
  """A likelihood below 1e-9 is raised to it: the escape code of a file costs about as much."""
  np.testing.assert_allclose(bits(jnp.array([0.0, 1e-12, 1e-9, 1e-7])), -np.log2([1e-9, 1e-9, 1e-9, 1e-7]), rtol=1e-5)
  np.testing.assert_allclose(gaussian_bits(jnp.array([8.0, 50.0]), 0.0, 1.0), -np.log2([1e-9, 1e-9]), rtol=1e-5)


def test_the_gradient_of_impossible_values_leads_back():
  slope = jax.jit(jax.grad(lambda v: gaussian_bits(v, 0.0, jnp.float32(1.0))))
  assert slope(3.0) > 0 > slope(-3.0)
  difference = gaussian_bits(2.001, 0, 1.0) - gaussian_bits(1.999, 0, 1.0)
  np.testing.assert_allclose(slope(2.0), difference / 0.002, rtol=0.01)


@pytest.mark.parametrize("scale", [SCALE_MIN, 1.0, 40.0])
def test_the_gaussian_bins_sum_to_one(scale):
  symbols = jnp.arange(-400.0, 401.0)
  likelihood = 2.0**-gaussian_bits(symbols + 0.3, 0.3, scale)
  np.testing.assert_allclose(likelihood[likelihood > 2e-9].sum(), 1, atol=1e-4)


def test_a_scale_takes_the_first_table_row_that_is_not_below_it():
  table = scale_table()
  scales = jnp.array([SCALE_MIN, table[10], table[10] * 1.0001, 300.0])
  np.testing.assert_array_equal(scale_index(scales), [0, 10, 11, 63])


def test_the_cumulative_of_z_rises_and_its_bins_sum_to_one():
  prior = FactorizedPrior(channels=3)
  variables = jax.jit(lambda key: prior.init(key, jnp.zeros(3), method="bits"))(jax.random.key(1))
  v = jnp.tile(jnp.arange(-300.0, 301.0)[:, None], (1, 3))
  assert np.all(np.diff(prior.apply(variables, v, method="cumulative_logits"), axis=0) > 0)
  np.testing.assert_allclose(prior.apply(variables, v, method="likelihood").sum(0), 1, atol=1e-3)


def test_the_aux_loss_is_the_distance_of_the_quantiles_from_their_probabilities():
  """5e-10, 1/2 and 1 - 5e-10: a mass of 1e-9 is outside of the outer ones (Balle's tail mass)."""
  params = random_prior()
  prior = FactorizedPrior(3)
  logits = prior.apply({"params": params}, params["quantiles"].T, method="cumulative_logits")
  wanted = sum(abs(logits[i] - target).sum() for i, target in enumerate(np.log([5e-10, 1, (1 - 5e-10) / 5e-10])))
  np.testing.assert_allclose(prior.apply({"params": params}, method="aux_loss"), wanted, rtol=1e-4)
  np.testing.assert_array_equal(prior.apply({"params": params}, method=lambda p: p.medians), params["quantiles"][:, 1])
