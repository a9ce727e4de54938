"""The recipe of the ablation rows: nano with a single rate, so rows are compared by one loss.

Each row of configs/ablations/ adds one part to the row before it:

    mlic-jax ablate --data IMAGES --steps STEPS --workdir WORKDIR

With a single rate there are no learned gains, which could compensate for a missing context. Latent residual prediction
comes last, because it reads the decoded slices like the contexts.
"""

import ml_collections

from configs import nano

CONTEXTS = ("local_attention", "global_intra_linear", "global_inter_linear", "channel")  # as in nano and MLIC++


def get_config(contexts: tuple[str, ...] = CONTEXTS, lrp_widths: tuple[int, ...] = (32,)) -> ml_collections.ConfigDict:
  """Returns every field that training reads, for nano with these contexts and this latent residual prediction."""
  c = nano.base()
  nano.add_muon(c)
  c.model.contexts, c.model.lrp_widths = contexts, lrp_widths
  c.lmbda = 0.0130
  c.schedule, c.final_learning_rate = "cosine", 1e-6
  return c
