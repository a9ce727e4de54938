"""Comparison of optimizers: Muon with twice nano's learning rates."""

import ml_collections

from configs import nano
from configs.optimizers import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  c = common.get_config()
  nano.add_muon(c)
  common.add_wsd(c)
  c.muon_learning_rate, c.learning_rate = 2 * c.muon_learning_rate, 2 * c.learning_rate
  return c
