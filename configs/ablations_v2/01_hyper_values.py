"""Ablation of MLICv2, row 1: row 0, and the first slice guided by the hyperprior, which has the values as well."""

import ml_collections

from configs.ablations_v2 import row0_contexts


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = row0_contexts.get_config()
  c.model.contexts = ("local_attention", "global_intra_hyper", "global_intra_linear", "global_inter_linear", "channel")
  c.model.options = dict(hyper_values=True)
  return c
