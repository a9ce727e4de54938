"""The second phase of MLICv2's training, reconstructed: a map of coded elements for a codec of configs/mlic_v2.py.

    python train.py --config configs/mlic_v2_selection.py:mse:3 --workdir DIR --config.data_dir=PHOTOGRAPHS \\
        --config.init_from=MODEL

The codec stays as it is. A third phase, in which both learn, is the same with --config.init_from of the model that
comes of this and --config.trained=all. How long these are in the paper is not known.
"""

import ml_collections

from configs import mlic_v2


def get_config(name: str = "mse:3") -> ml_collections.ConfigDict:
  """Every field that training reads, for the objective of that name."""
  c = mlic_v2.get_config(name)
  c.model.options.selection_widths = (16,)  # hidden ones of its networks, one for each pass of each slice
  c.trained = "map"                # "all": the codec as well, which then codes what the map keeps
  c.num_steps = 100_000
  c.schedule = "cosine"
  c.final_learning_rate = 1e-6
  del c.decay_steps, c.decay_factors  # of another schedule
  return c
