"""The recipe of the ablation rows: nano with a single rate, so that one loss compares the rows.

Each row of configs/ablations/ gives its context models, and each adds one part to the row before it:

    mlic-jax ablate --data IMAGES --steps STEPS --workdir WORKDIR

A single rate also keeps the learned gains of a variable-rate model from making up for a missing context. Latent
residual prediction comes last, since it reads the decoded slices as the contexts do.
"""

import ml_collections

from configs import nano

CONTEXTS = ("local_attention", "global_intra_linear", "global_inter_linear", "channel")  # of nano and MLIC++


def get_config(contexts: tuple[str, ...] = CONTEXTS, lrp_widths: tuple[int, ...] = (32,)) -> ml_collections.ConfigDict:
  """Returns every field that training reads, for nano with these contexts and this latent residual prediction."""
  c = nano.base()
  nano.add_muon(c)
  c.model.contexts, c.model.lrp_widths = contexts, lrp_widths
  c.lmbda = 0.0130
  c.schedule, c.final_learning_rate = "cosine", 1e-6
  return c
