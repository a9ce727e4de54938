"""Ablation, row 0: only the hyperprior."""

import ml_collections

from configs.ablations import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(contexts=(), lrp_widths=())
