"""The recipe of the ablation of nano on frozen latents: what is each distribution and each context worth?

    mlic-jax ablate --latents checkpoints/nano --data IMAGES --steps 400 --seeds 0 1 --workdir WORKDIR --configs \\
        ablations_latents/nano ablations_latents/without_local ablations_latents/without_intra \\
        ablations_latents/without_inter ablations_latents/without_channel ablations_latents/hyperprior
    mlic-jax ablate --latents checkpoints/nano --data IMAGES --steps 400 --seeds 0 1 --workdir WORKDIR \\
        --config.init_from=checkpoints/nano --config.learning_rate=1e-4 --config.muon_learning_rate=4e-4 --configs \\
        ablations_latents/nano ablations_latents/laplace ablations_latents/logistic \\
        ablations_latents/generalized_gaussian ablations_latents/generalized_gaussian_channel \\
        ablations_latents/generalized_gaussian_element ablations_latents/gaussian_mixture

The contexts are trained from the start, and the distributions from the parameters of nano.
Each row changes one part of the first row, which is nano.
"""

import ml_collections

from configs import nano

CONTEXTS = ("local_attention", "global_intra_linear", "global_inter_linear", "channel")
SHAPES = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)


def get_config(distribution: str = "gaussian", without: tuple[str, ...] = (), **options) -> ml_collections.ConfigDict:
  """Returns every field that training reads, for nano with this distribution and without some of its contexts."""
  c = nano.base()
  nano.add_rates(c)
  nano.add_muon(c)
  c.model.distribution, c.model.options = distribution, options
  c.model.contexts = tuple(name for name in CONTEXTS if name not in without)
  c.batch_size, c.warmup_steps = 8, 50
  c.schedule, c.final_learning_rate = "cosine", 1e-6
  return c
