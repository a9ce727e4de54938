"""Comparison of optimizers: SOAP for kernels of convolutions, with the paper's learning rate, and Adam for the rest."""

import ml_collections

from configs.optimizers import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  c = common.get_config()
  c.optimizer, c.learning_rate = "soap", 3e-3
  common.add_wsd(c)
  return c
