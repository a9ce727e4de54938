"""Ablation on frozen latents: a Laplace distribution."""

import ml_collections

from configs.ablations_latents import common


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  return common.get_config(distribution="laplace")
