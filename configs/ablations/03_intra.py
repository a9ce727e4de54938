"""Ablation, row 3: adds the intra-slice global context."""

import ml_collections

from configs.ablations import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(contexts=("local_attention", "global_intra_linear", "channel"), lrp_widths=())
