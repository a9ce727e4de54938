"""Ablation of MLICv2, row 1 with values from the anchors of the first slice. The later rows do not have it."""

import ml_collections

from configs.ablations_v2 import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(hyper_values=False)
