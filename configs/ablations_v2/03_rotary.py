"""Ablation of MLICv2, row 3: row 2, and rotary positions."""

import ml_collections

from configs.ablations_v2 import row2_reweighting


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row2_reweighting.get_config()
  c.model.options.rotary = True
  return c
