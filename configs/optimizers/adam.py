"""Comparison of optimizers: Adam for every parameter."""

import ml_collections

from configs.optimizers import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  c = common.get_config()
  c.optimizer, c.learning_rate = "adam", 1e-3
  common.add_wsd(c)
  return c
