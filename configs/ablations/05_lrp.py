"""Ablation, row 5: adds latent residual prediction, which makes it nano with a single rate."""

import ml_collections

from configs.ablations import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  contexts = ("local_attention", "global_intra_linear", "global_inter_linear", "channel")
  return common.get_config(contexts=contexts, lrp_widths=(32,))
