"""The second phase of MLICv2's training, a reconstruction: a selection map for a trained codec of configs/mlic_v2.py.

    python train.py --config configs/mlic_v2_selection.py:mse:3 --workdir DIR --config.data_dir=IMAGES \\
        --config.init_from=MODEL

The codec is frozen. A third phase trains both: use the same command with the resulting model as --config.init_from and
with --config.trained=all. The paper does not publish the lengths of these phases.
"""

import ml_collections

from configs import mlic_plus_plus, mlic_v2


def get_config(name: str = "mse:3") -> ml_collections.ConfigDict:
  """Returns every field that training reads, for the named objective."""
  c = mlic_plus_plus.base(name)
  mlic_v2.set_model(c)
  c.model.options.selection_widths = (16,)  # hidden widths of the selection networks, one per pass of each slice
  c.trained = "map"                # "all" also trains the codec, which then codes only the selected elements
  c.num_steps = 100_000
  c.schedule = "cosine"
  c.final_learning_rate = 1e-6
  return c
