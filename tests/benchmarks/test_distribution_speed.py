"""Tests of the benchmark of distributions."""
import pytest
from helpers.distribution_cases import CONFIGS, variables_of

from benchmarks.distributions import DISTRIBUTIONS, with_distribution
from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_calibrated_model_takes_every_distribution(name):
  config = CONFIGS["shapes by channel"]
  variables = variables_of(config)
  model = Model("calibrated", config, variables, build_table(config, variables), bytes(8), None)
  assert with_distribution(model, *DISTRIBUTIONS[name]).config.distribution == DISTRIBUTIONS[name][0]
