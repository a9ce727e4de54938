"""Ablation of MLICv2, row 3: adds rotary position embedding."""

import ml_collections

from configs.ablations_v2 import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(hyper_values=True, reweighting=True, rotary=True)
