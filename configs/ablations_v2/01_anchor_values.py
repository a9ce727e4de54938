"""Ablation of MLICv2, row 1 read the other way: values are the anchors of the first slice. Row 2 is without it."""

import ml_collections

from configs.ablations_v2 import row1_hyper_values


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row1_hyper_values.get_config()
  c.model.options.hyper_values = False
  return c
