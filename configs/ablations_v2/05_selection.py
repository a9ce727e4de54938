"""Ablation of MLICv2, row 5: adds a predicted selection map, which trains together with the codec."""

import ml_collections

from configs.ablations_v2 import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  c = common.get_config(hyper_values=True, reweighting=True, rotary=True, token_expansion=1, selection_widths=(32,))
  c.trained = "all"                # "map" would freeze the codec
  return c
