"""MLIC+ at the size of its paper: MLIC++ with softmax attention. See configs/mlic_plus_plus.py.

    python train.py --config configs/mlic_plus.py:mse:3 --workdir DIR --config.data_dir=IMAGES
"""

import ml_collections

from configs import mlic_plus_plus


def get_config(name: str = "mse:3") -> ml_collections.ConfigDict:
  """Returns every field that training reads, for the named objective."""
  c = mlic_plus_plus.get_config(name)
  c.model.contexts = ("local_attention", "global_intra_softmax", "global_inter_softmax", "channel")
  return c
