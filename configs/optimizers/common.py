"""The recipe of the comparison of optimizers: a short training of nano. The configs differ only in the optimizer.

    mlic-jax ablate --data IMAGES --steps 300 --workdir WORKDIR --configs \\
        optimizers/muon optimizers/muon_lr2x optimizers/muon_cosine optimizers/adam optimizers/soap
"""

import ml_collections

from configs import nano


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads except those of optimizer and schedule."""
  c = nano.base()
  nano.add_rates(c)
  c.batch_size, c.ema_decay = 8, 0.98   # the average covers about 50 steps, for a training of hundreds of steps
  c.warmup_steps = 50
  c.eval_every = 75
  return c


def add_wsd(c: ml_collections.ConfigDict) -> None:
  """Adds nano's schedule, which decays over the last quarter of 300 steps."""
  c.schedule, c.decay_start, c.final_learning_rate = "wsd", 225, 0.0
