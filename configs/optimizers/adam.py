"""Comparison of optimisers: Adam for everything."""

import ml_collections

from configs.optimizers import muon


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = muon.get_config()
  c.optimizer, c.learning_rate = "adam", 1e-3
  del c.muon_learning_rate
  return c
