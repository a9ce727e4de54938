"""Ablation on frozen latents: a generalized Gaussian with a predicted shape for each element."""

import ml_collections

from configs.ablations_latents import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(distribution="generalized_gaussian", shapes=common.SHAPES, shape_per="element")
