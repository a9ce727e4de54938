"""Tests of the benchmark of distributions."""
import dataclasses

import pytest
from helpers.distribution_cases import CONFIGS, variables_of

from benchmarks.distributions import DISTRIBUTIONS, with_distribution
from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model


@pytest.fixture(scope="module")
def model():
  config = dataclasses.replace(CONFIGS["shapes by channel"], transforms="helpers.light_transforms", widths=())
  variables = variables_of(config)
  return Model("calibrated", config, variables, build_table(config, variables), bytes(8), None)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_calibrated_model_takes_every_distribution(model, name):
  assert with_distribution(model, *DISTRIBUTIONS[name]).config.distribution == DISTRIBUTIONS[name][0]
