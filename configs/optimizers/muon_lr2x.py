"""Comparison of optimisers: Muon with twice nano's rates."""

import ml_collections

from configs.optimizers import muon


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = muon.get_config()
  c.muon_learning_rate, c.learning_rate = 2 * c.muon_learning_rate, 2 * c.learning_rate
  return c
