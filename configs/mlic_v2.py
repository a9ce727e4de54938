"""MLICv2 at the size of its paper, reconstructed: docs/design.md says what is known of it. See mlic_plus_plus.py.

    python train.py --config configs/mlic_v2.py:mse:3 --workdir DIR --config.data_dir=PHOTOGRAPHS

The recipe is that of MLIC++, from which nothing published differs but for a second phase of guided selective
compression, which is left out.
"""

import ml_collections

from configs import mlic_plus_plus


def get_config(name: str = "mse:3") -> ml_collections.ConfigDict:
  """Every field that training reads, for the objective of that name."""
  c = mlic_plus_plus.get_config(name)
  c.model.transforms = "token_mixing"
  c.model.contexts = ("local_attention", "global_intra_hyper", "global_intra_linear", "global_inter_linear", "channel")
  c.model.options = dict(
      token_blocks=2,              # that stand for a residual one
      token_expansion=2,           # width inside of them, in channels per channel
      hyper_values=True,           # to the first slice the hyperprior carries its own values; False: those of anchors
      reweighting=True,            # of the channels of the global contexts
      rotary=True)                 # positions, in place of the table of relative ones
  return c
