"""Ablation on frozen latents: no intra-slice global context."""

import ml_collections

from configs.ablations_latents import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(without=("global_intra_linear",))
