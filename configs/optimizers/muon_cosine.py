"""Comparison of optimisers: Muon with a rate that falls from the start."""

import ml_collections

from configs.optimizers import muon


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = muon.get_config()
  c.schedule = "cosine"
  del c.decay_start                # of the schedule that has no end of its own
  return c
