"""Ablation, row 2: the row above, and the local context."""

import ml_collections

from configs.ablations import row1_channel


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row1_channel.get_config()
  c.model.contexts = ("local_attention", "channel")
  return c
