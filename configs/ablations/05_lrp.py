"""Ablation, row 5: the row above, and latent residual prediction: nano at one rate."""

import ml_collections

from configs.ablations import row4_inter


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row4_inter.get_config()
  c.model.lrp_widths = (32,)
  return c
