"""Comparison of optimisers: SOAP for the kernels of convolutions, Adam for the rest, at the rate of its paper."""

import ml_collections

from configs.optimizers import muon


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = muon.get_config()
  c.optimizer, c.learning_rate = "soap", 3e-3
  del c.muon_learning_rate
  return c
