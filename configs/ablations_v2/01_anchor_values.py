"""Ablation of MLICv2, the other reading of row 1: the values are the anchors of the first slice. Row 2 lacks it."""

import ml_collections

from configs.ablations_v2 import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(hyper_values=False)
