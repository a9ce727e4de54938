"""Ablation of MLICv2, row 2: row 1 with values of the hyperprior, and the channels of global contexts reweighted."""

import ml_collections

from configs.ablations_v2 import row1_hyper_values


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row1_hyper_values.get_config()
  c.model.options.reweighting = True
  return c
