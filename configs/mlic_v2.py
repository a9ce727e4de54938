"""MLICv2 at the size of its paper, a reconstruction: docs/models.md lists the parts that the paper leaves open.

    python train.py --config configs/mlic_v2.py:mse:3 --workdir DIR --config.data_dir=IMAGES

The recipe is that of MLIC++. The only difference that the paper publishes is a second phase of guided selective
compression, in configs/mlic_v2_selection.py.
"""

import ml_collections

from configs import mlic_plus_plus


def get_config(name: str = "mse:3") -> ml_collections.ConfigDict:
  """Returns every field that training reads, for the named objective."""
  c = mlic_plus_plus.get_config(name)
  set_model(c)
  return c


def set_model(c: ml_collections.ConfigDict) -> None:
  """Turns the model of MLIC++ into that of MLICv2."""
  c.model.transforms = "token_mixing"
  c.model.contexts = ("local_attention", "global_intra_hyper", "global_intra_linear", "global_inter_linear", "channel")
  c.model.options = dict(
      token_blocks=2,              # token-mixing blocks instead of one residual block
      token_expansion=2,           # hidden channels of a block per channel
      hyper_values=True,           # values of the first slice come from the hyperprior; False: from its anchors
      reweighting=True,            # channel reweighting in the global contexts
      rotary=True)                 # rotary position embedding instead of the table of relative positions
