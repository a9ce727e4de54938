"""Ablation of MLICv2, row 0: nano at one rate, with the contexts of MLIC++. Further rows add one thing each.

    python -m mlic_jax ablate --data PHOTOGRAPHS --steps STEPS --workdir WORKDIR --seeds 0 1 --configs \\
        ablations_v2/row0_contexts ablations_v2/row1_hyper_values ablations_v2/row1_anchor_values \\
        ablations_v2/row2_reweighting ablations_v2/row3_rotary ablations_v2/row4_token_mixing \\
        ablations_v2/row5_selection

and again with --equal-time WORKDIR and another --workdir, where each row gets the time of row 0.
"""

import ml_collections

from configs.ablations import row5_lrp


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  return row5_lrp.get_config()
