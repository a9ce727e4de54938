"""The recipe of the comparison of optimizers: nano over a short training. Its files differ in the optimizer alone.

    mlic-jax ablate --data IMAGES --steps 300 --workdir WORKDIR --configs \\
        optimizers/muon optimizers/muon_lr2x optimizers/muon_cosine optimizers/adam optimizers/soap
"""

import ml_collections

from configs import nano


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads but those of the optimizer and the schedule."""
  c = nano.base()
  nano.add_rates(c)
  c.batch_size, c.ema_decay = 8, 0.98   # the average covers the last steps of hundreds, not of thousands
  c.warmup_steps = 50
  c.eval_every = 75
  return c


def add_wsd(c: ml_collections.ConfigDict) -> None:
  """Adds nano's schedule, which decays over the last quarter of 300 steps."""
  c.schedule, c.decay_start, c.final_learning_rate = "wsd", 225, 0.0
