"""Comparison of optimizers: nano's Muon."""

import ml_collections

from configs import nano
from configs.optimizers import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  c = common.get_config()
  nano.add_muon(c)
  common.add_wsd(c)
  return c
