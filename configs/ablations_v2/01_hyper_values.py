"""Ablation of MLICv2, row 1: adds hyperprior-guided attention in the first slice, with values from the hyperprior."""

import ml_collections

from configs.ablations_v2 import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(hyper_values=True)
