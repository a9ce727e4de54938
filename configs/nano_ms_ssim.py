"""nano for MS-SSIM: fine-tuned from nano with the papers' loss and lambdas, bpp + lmbda * (1 - MS-SSIM).

    mlic-jax train --config nano_ms_ssim --workdir runs/nano_ms_ssim --config.data_dir=IMAGES

Set `decay_start` and `num_steps` to end the run.
"""

import ml_collections

from configs import nano

LAMBDAS = (2.40, 4.58, 8.73, 16.64, 31.73, 60.50)


def get_config() -> ml_collections.ConfigDict:
  """Returns every field that training reads."""
  c = nano.get_config()
  c.distortion, c.lmbdas = "ms_ssim", LAMBDAS
  c.init_from = "checkpoints/nano"
  c.crop_size, c.batch_size = 192, 8                       # MS-SSIM needs 161 pixels or more a side
  c.learning_rate, c.muon_learning_rate, c.warmup_steps = 2.5e-4, 1e-3, 100
  c.eval_every = 300
  return c
