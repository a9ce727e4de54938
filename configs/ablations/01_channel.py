"""Ablation, row 1: the row above, and the channel-wise context."""

import ml_collections

from configs.ablations import row0_hyperprior


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row0_hyperprior.get_config()
  c.model.contexts = ("channel",)
  return c
