"""Ablation, row 2: adds the local context."""

import ml_collections

from configs.ablations import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(contexts=("local_attention", "channel"), lrp_widths=())
