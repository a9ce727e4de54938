"""MLIC at the size of its paper: fewer channels, convolutions as local context, no inter-slice global context.

    python train.py --config configs/mlic.py:mse:3 --workdir DIR --config.data_dir=IMAGES
"""

import ml_collections

from configs import mlic_plus_plus


def get_config(name: str = "mse:3") -> ml_collections.ConfigDict:
  """Returns every field that training reads, for the named objective; see configs/mlic_plus_plus.py."""
  c = mlic_plus_plus.get_config(name)
  c.model.M, c.model.num_slices = 192, 6
  c.model.contexts = ("local_stacked", "global_intra_softmax", "channel")
  return c
