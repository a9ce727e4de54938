"""Ablation, row 4: adds the inter-slice global context, which completes the contexts of nano."""

import ml_collections

from configs.ablations import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  contexts = ("local_attention", "global_intra_linear", "global_inter_linear", "channel")
  return common.get_config(contexts=contexts, lrp_widths=())
