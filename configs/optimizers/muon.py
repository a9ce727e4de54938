"""Comparison of optimisers: nano with Muon, over a short training. The other files change the optimiser alone.

    python -m mlic_jax ablate --data PHOTOGRAPHS --steps 300 --workdir WORKDIR --configs \\
        optimizers/muon optimizers/muon_double optimizers/muon_cosine optimizers/adam optimizers/soap
"""

import ml_collections

from configs import nano


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads."""
  c = nano.get_config()
  c.batch_size, c.ema_decay = 8, 0.98   # an average over the last steps of hundreds, not of thousands
  c.warmup_steps, c.decay_start = 50, 225
  c.eval_every = 75
  return c
