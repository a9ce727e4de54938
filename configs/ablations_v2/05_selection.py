"""Ablation of MLICv2, row 5: row 4, and a predicted map of the elements that are coded.

It learns along with the codec; `trained="map"` would leave the codec as it is."""

import ml_collections

from configs.ablations_v2 import row4_token_mixing


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row4_token_mixing.get_config()
  c.model.options.selection_widths = (32,)
  c.trained = "all"
  return c
