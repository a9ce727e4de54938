"""MLIC++ at the size and with the recipe of its authors; the other configs of the papers start from this one.

    python train.py --config configs/mlic_plus_plus.py:mse:3 --workdir DIR --config.data_dir=IMAGES

The part after the file name has the distortion, mse or ms_ssim, and the index of one of its six lambdas, from 0 (small
files) to 5 (high quality). The default is mse:3. The model has 83.5 M live parameters. The authors train two to three
million steps of 32 crops on one A100 for each lambda; their MS-SSIM models start from another checkpoint, with 8 crops.
"""

import ml_collections

from configs import common

LAMBDAS = {
    "mse": (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483),  # loss = bpp + lmbda * 255**2 * mse
    "ms_ssim": (2.4, 4.58, 8.73, 16.64, 31.73, 60.5),         # loss = bpp + lmbda * (1 - ms_ssim)
}


def objective(name: str) -> tuple[str, float]:
  """Returns distortion and lambda, such as ("mse", 0.0130) for "mse:3". ValueError for an unknown objective."""
  distortion, _, index = name.partition(":")
  if distortion not in LAMBDAS or index not in list("012345"):
    raise ValueError(f"no objective {name!r}; wanted mse:0 to mse:5 or ms_ssim:0 to ms_ssim:5, as in "
                     "--config mlic_plus_plus:mse:3")
  return distortion, LAMBDAS[distortion][int(index)]


def get_config(name: str = "mse:3") -> ml_collections.ConfigDict:
  """Returns every field that training reads, for the named objective."""
  c = base(name)
  c.num_steps = 2_000_000
  c.schedule = "step"              # the learning rate is multiplied by decay_factors[i] after decay_steps[i]
  c.decay_steps = (1_800_000, 1_900_000)
  c.decay_factors = (0.3, 0.33)
  return c


def base(name: str) -> ml_collections.ConfigDict:
  """Returns MLIC++ and its recipe without schedule and number of steps."""
  c = common.get_config()
  c.model = dict(                  # every field of CodecConfig, with the values of the paper
      transforms="cheng2020", N=192, M=320, num_slices=10, widths=(), hyper_widths=(), synthesis_width=0,
      contexts=("local_attention", "global_intra_linear", "global_inter_linear", "channel"),
      context_ratio=2, channel_widths=(192, 128), entropy_widths=(320, 256, 128), lrp_widths=(224, 128),
      window_size=5, num_rates=0, distribution="gaussian", options={})

  c.crop_size = 256
  c.crop_schedule = ((1_200_000, 512),)  # from the authors' README
  c.batch_size = 32                # over all devices
  c.data_workers = 8
  c.cache_gigabytes = 0.0          # the 100,000 training images of the papers do not fit into memory

  c.distortion, c.lmbda = objective(name)
  c.optimizer = "adam"
  c.learning_rate = 1e-4
  c.warmup_steps = 9_000           # about three epochs
  c.ema_decay = 0.0                # the papers evaluate the last parameters

  c.log_every = 100                # in steps, like the next two
  c.checkpoint_every = 5_000
  c.eval_every = 20_000
  c.eval_images = 0                # all held-out images
  c.eval_batch_size = 8            # over all devices
  return c
