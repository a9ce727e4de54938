"""MLIC++ at the size and with the recipe of its authors, for one lambda of the MSE models.

    python train.py --config configs/mlic_plus_plus.py --workdir runs/mlic_plus_plus --config.data_dir=PHOTOGRAPHS

The papers' lambdas are 0.0018 0.0035 0.0067 0.0130 0.0250 0.0483: choose one with --config.lmbda. The model has 83.5 M
live parameters; the authors train two to three million steps of 32 crops on one A100 per lambda.
"""

import ml_collections

from configs import nano


def get_config() -> ml_collections.ConfigDict:
  c = nano.get_config()
  c.model = dict(                  # all of CodecConfig, at the values of the paper
      N=192, M=320, num_slices=10, widths=(), hyper_widths=(), synthesis_width=0,
      contexts=("local_attention", "global_intra_linear", "global_inter_linear", "channel"),
      context_ratio=2, channel_widths=(192, 128), entropy_widths=(320, 256, 128), lrp_widths=(224, 128),
      window_size=5, num_rates=0, scan_unroll=0)

  c.crop_size = 256
  c.batch_size = 32                # of all devices together
  c.data_workers = 8
  c.cache_gigabytes = 0.0          # the papers' 100,000 photographs are too many

  del c.lmbdas                     # of variable-rate models
  c.lmbda = 0.0130

  c.num_steps = 2_000_000
  c.learning_rate = 1e-4
  c.warmup_steps = 9_000           # about three epochs
  c.schedule = "step"
  del c.final_learning_rate        # of the cosine schedule
  c.decay_steps = (1_800_000, 1_900_000)
  c.decay_factors = (0.3, 0.33)
  c.ema_decay = 0.0                # the papers evaluate the last parameters

  c.log_every = 100
  c.checkpoint_every = 5_000
  c.eval_every = 20_000
  c.eval_images = 0
  c.eval_batch_size = 8
  return c
