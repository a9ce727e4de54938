"""The recipe of the ablation of MLICv2: nano with a single rate. Each row adds one part to the row before it.

    mlic-jax ablate --data IMAGES --steps STEPS --workdir WORKDIR --seeds 0 1 --configs \\
        ablations_v2/00_contexts ablations_v2/01_hyper_values ablations_v2/01_anchor_values \\
        ablations_v2/02_reweighting ablations_v2/03_rotary ablations_v2/04_token_mixing ablations_v2/05_selection

Run it again with --equal-time WORKDIR and another --workdir to give each row the training time of row 0.
"""

import ml_collections

from configs.ablations import common

CONTEXTS = ("local_attention", "global_intra_hyper", "global_intra_linear", "global_inter_linear", "channel")


def get_config(**options) -> ml_collections.ConfigDict:
  """Returns every field that training reads, for nano with the contexts of MLICv2 and these `model.options`."""
  c = common.get_config(contexts=CONTEXTS)
  c.model.options = options
  return c
