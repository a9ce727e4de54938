"""nano: a small variable-rate codec that trains and codes on two CPU cores. One checkpoint is a whole RD curve.

    python train.py --config configs/nano.py --workdir runs/nano --config.data_dir=PHOTOGRAPHS
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads; a value can be changed with --config.FIELD=VALUE."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.distributed = False            # True: several processes, connected by jax.distributed

  c.model = dict(                  # see CodecConfig in mlic_jax/config.py
      N=64, M=160, num_slices=4, widths=(24, 48, 96), hyper_widths=(48, 64),
      contexts=("local_attention", "global_intra_linear", "global_inter_linear", "channel"),
      context_ratio=1, channel_widths=(48, 32), entropy_widths=(96, 64), lrp_widths=(32, 32),
      window_size=5, num_rates=6, scan_unroll=0)

  # Photographs: JPEG, PNG, WebP, ..., in any mix of sizes; those with a side below crop_size are left out.
  c.data_dir = ""
  c.eval_dir = ""                  # "": every holdout_every-th file of data_dir is held out instead
  c.holdout_every = 24
  c.crop_size = 128                # pixels, a multiple of 64
  c.downscale_probability = 0.5    # of making a photograph smaller before the crop
  c.flip = True                    # left to right, half of the crops
  c.batch_size = 8                 # of all devices together
  c.data_threads = 1               # that read and crop
  c.data_workers = 0               # processes that do it instead of the threads, for large photographs
  c.cache_gigabytes = 1.0          # decoded photographs kept in memory, 0: none

  # Objective: bpp + lmbda * 255**2 * mse; every sample draws one of the rates.
  c.distortion = "mse"
  c.lmbdas = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483)  # of quality 1, 2, ...; a single-rate model has c.lmbda

  # Optimiser
  c.num_steps = 7_000
  c.optimizer = "muon"             # for the kernels of convolutions, Adam for the rest; or "adam"
  c.muon_learning_rate = 2e-3      # after warmup_steps; the schedule of learning_rate in proportion
  c.learning_rate = 5e-4           # after warmup_steps
  c.warmup_steps = 300
  c.schedule = "cosine"            # to final_learning_rate at num_steps; or "step" with decay_steps, decay_factors
  c.final_learning_rate = 1e-6
  c.aux_learning_rate = 1e-3       # of the quantiles of z's density
  c.grad_clip = 1.0                # global norm; 0: not clipped
  c.ema_decay = 0.999              # of the average of the parameters that is evaluated and exported; 0: none

  # Figures, checkpoints, evaluation; all in steps.
  c.log_every = 50
  c.checkpoint_every = 500
  c.keep_checkpoints = 2
  c.eval_every = 1000
  c.eval_images = 24               # of the held-out ones, 0: all
  c.eval_crop_size = 256           # pixels, from the middle
  c.eval_batch_size = 4            # of all devices together
  return c
