"""Ablation of MLICv2, row 0: the contexts of MLIC++."""

import ml_collections

from configs.ablations import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config()
