"""Ablation, row 4: the row above, and the inter-slice global context: nano at one rate, without residual prediction."""

import ml_collections

from configs.ablations import row3_intra


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row3_intra.get_config()
  c.model.contexts = ("local_attention", "global_intra_linear", "global_inter_linear", "channel")
  return c
