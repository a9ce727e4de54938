"""Ablation, row 3: the row above, and the intra-slice global context."""

import ml_collections

from configs.ablations import row2_local


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row2_local.get_config()
  c.model.contexts = ("local_attention", "global_intra_linear", "channel")
  return c
