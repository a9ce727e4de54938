"""Ablation, row 0: nano at one rate, with the hyperprior alone. Every further row adds one thing to the row above it.

    python train.py --config configs/ablations/row0_hyperprior.py --workdir DIR --config.data_dir=PHOTOGRAPHS

One rate, because its loss is then one number that rows can be compared by, and no learned gain makes up for a context.
Residual prediction comes last: it looks at the decoded slices, as the contexts do.
"""

import ml_collections

from configs import nano


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = nano.get_config()
  del c.lmbdas, c.rate_weighting   # of variable-rate models
  c.lmbda = 0.0130
  c.schedule, c.final_learning_rate = "cosine", 1e-6
  del c.decay_start                # of the schedule that has no end of its own
  c.model.num_rates = 0
  c.model.contexts = ()
  c.model.lrp_widths = ()
  return c
