"""Comparison of optimizers: Muon with a learning rate that decays from the start."""

import ml_collections

from configs import nano
from configs.optimizers import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  c = common.get_config()
  nano.add_muon(c)
  c.schedule, c.final_learning_rate = "cosine", 0.0
  return c
