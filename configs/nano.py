"""nano: a small variable-rate codec that trains and codes on two CPU cores. One checkpoint covers an RD curve.

    python train.py --config configs/nano.py --workdir runs/nano --config.data_dir=IMAGES
"""

import ml_collections

from configs import common

LAMBDAS = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483)


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads; see configs/common.py for the shared ones."""
  c = base()
  add_rates(c)
  add_muon(c)
  c.schedule = "wsd"               # constant until decay_start, then linear to final_learning_rate at num_steps
  c.decay_start = 0                # 0: the decay does not begin yet
  c.final_learning_rate = 0.0
  return c


def base() -> ml_collections.ConfigDict:
  """Returns nano with a single rate, without lambda, optimizer and schedule, which comparisons choose."""
  c = common.get_config()
  c.model = dict(                  # see CodecConfig in mlic_jax/config.py
      transforms="unshuffled", N=64, M=256, num_slices=4, widths=(192, 256), hyper_widths=(48, 64),
      contexts=("local_attention", "global_intra_linear", "global_inter_linear", "channel"),
      context_ratio=1, channel_widths=(48, 32), entropy_widths=(128, 128), lrp_widths=(32,),
      window_size=3, num_rates=0, options={})

  c.crop_size = 128                # pixels, a multiple of 64; smaller images are left out
  c.batch_size = 16                # over all devices
  c.data_workers = 0               # processes that read and crop instead of the threads, for large images
  c.cache_gigabytes = 1.0          # memory for decoded images; 0: no cache
  c.distortion = "mse"             # loss = bpp + lmbda * 255**2 * mse

  c.num_steps = 1_000_000          # an upper bound: set decay_start to end the schedule "wsd" earlier
  c.warmup_steps = 300
  c.ema_decay = 0.999              # decay of the average of parameters that is evaluated and exported; 0: no average

  c.log_every = 50                 # in steps, like the next two
  c.checkpoint_every = 300
  c.eval_every = 900
  c.eval_images = 24               # held-out images that are evaluated; 0: all
  c.eval_batch_size = 4            # over all devices
  return c


def add_rates(c: ml_collections.ConfigDict) -> None:
  """Makes nano a variable-rate codec."""
  c.model.num_rates = len(LAMBDAS)
  c.lmbdas = LAMBDAS               # lambda of quality 1, 2, ...; every sample of a batch draws one
  c.rate_weighting = 0.45          # a sample's loss has the weight lmbda**-0.45, which balances the rate points


def add_muon(c: ml_collections.ConfigDict) -> None:
  """Adds nano's optimizer: Muon for the kernels of convolutions, Adam for everything else."""
  c.optimizer = "muon"             # or "adam", "soap"
  c.muon_learning_rate = 2e-3      # after warmup_steps; follows the schedule of learning_rate
  c.learning_rate = 5e-4           # learning rate of Adam after warmup_steps
