"""Ablation of MLICv2, row 4: row 3, and token-mixing blocks in the transforms, one for each block of nano.

Nano's blocks multiply 3.25 C² times at a position, these 5 C²."""

import ml_collections

from configs.ablations_v2 import row3_rotary


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row3_rotary.get_config()
  c.model.options.token_expansion = 1
  return c
