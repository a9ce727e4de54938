"""Ablation of MLICv2, row 4: adds token-mixing blocks to the transforms, one for each block of nano.

A block of nano has 3.25 C² multiplications per position, a token-mixing block 5 C²."""

import ml_collections

from configs.ablations_v2 import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(hyper_values=True, reweighting=True, rotary=True, token_expansion=1)
