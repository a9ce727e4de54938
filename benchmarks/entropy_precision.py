"""Whether entropy_precision changes what a training learns: loss curves under the products of a TPU, imitated on CPU.

    python benchmarks/entropy_precision.py --data PHOTOGRAPHS [--steps 600]

A TPU that multiplies at precision "default" rounds the factors to bfloat16 and sums in float32, in the gradient as
well; here every product that is not asked to be of "highest" precision does the same. So the transforms are rounded in
all runs, as on a TPU, and entropy_precision says whether the entropy path is. A small codec with all contexts of
configs/nano.py trains from the same start on the same crops, with "highest", with "default", and with "highest" from
another seed, which shows how far two curves are apart by chance.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from jax._src.lax import convolution, lax

from mlic_jax.data import batches
from mlic_jax.model.mlic import build
from mlic_jax.training import parallel
from mlic_jax.training.configuration import check_fields, load_config
from mlic_jax.training.losses import rd_loss
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import create_state, make_train_step

SMALL = dict(N=32, M=64, widths=(96, 96), hyper_widths=(32, 32), channel_widths=(32, 32), entropy_widths=(64, 64))
RUNS = ("highest", 0), ("default", 0), ("highest", 1)


def multiply_as_tpus_do() -> None:
  """Replaces the two products that all others are made of, in jax itself, so that their gradients use them as well."""
  for module, name in (lax, "dot_general"), (convolution, "conv_general_dilated"):
    usual = getattr(module, name)

    def product(a, b, *args, usual=usual, precision=None, **kwargs):
      asked = lax.canonicalize_precision(precision)
      asked = asked[0] if isinstance(asked, tuple) else asked
      if asked != jax.lax.Precision.HIGHEST:
        a, b = (jax.lax.reduce_precision(each, 8, 7) for each in (a, b))  # the bits of bfloat16
      return usual(a, b, *args, precision=precision, **kwargs)

    setattr(module, name, product)
    setattr(jax.lax, name, product)


def train(config, precision: str, seed: int, photographs, held_out: np.ndarray) -> tuple[np.ndarray, list[float]]:
  """The losses of all steps, and those of the held-out crops at the end, one for each rate."""
  config.seed, config.entropy_precision = seed, precision
  codec = check_fields(config)
  model, optimizer = build(codec, entropy_precision=precision), make_optimizer(config)
  state = parallel.replicate(create_state(config, model, optimizer))
  step = parallel.on_all_devices(make_train_step(config, model, optimizer), donate_state=True)
  reader = batches.training_batches(
      photographs, seed=seed, batch_size=config.batch_size, sizes=((0, config.crop_size),), flip=True,
      downscale_probability=config.downscale_probability, downscale=config.downscale)
  losses = []
  for _ in range(config.num_steps):
    state, metrics = step(state, parallel.shard(next(reader)))
    losses.append(metrics["loss"])
  losses = np.ravel(jax.device_get(losses))
  variables, coding = {"params": parallel.unreplicate(state).ema_params}, build(codec)
  evaluate = jax.jit(lambda quality, lmbda: rd_loss(coding.apply(variables, held_out, quality), held_out, lmbda)[0])
  return losses, [float(evaluate(i + 1.0, lmbda)) for i, lmbda in enumerate(config.lmbdas)]


def main() -> None:
  parser = argparse.ArgumentParser(description="Loss curves by the precision of the entropy path.")
  parser.add_argument("--data", required=True, metavar="PHOTOGRAPHS")
  parser.add_argument("--steps", type=int, default=600)
  args = parser.parse_args()
  config = load_config("configs/nano.py")
  config.model.update(SMALL)
  config.data_dir, config.batch_size, config.crop_size, config.ema_decay = args.data, 8, 64, 0.99
  config.num_steps, config.decay_start, config.warmup_steps = args.steps, args.steps * 3 // 4, args.steps // 10
  sources, held_out = batches.split(config.data_dir, "", config.holdout_every, "")
  photographs = batches.Mixture(sources, ((0, config.crop_size),), 10**9)
  held_out = batches.eval_images(held_out, 128, 24).astype(np.float32) / 255
  multiply_as_tpus_do()
  quarters = np.arange(1, 5) * args.steps // 4
  print(f"{args.steps} steps of {config.batch_size} crops; loss: mean of each quarter, then held out over all rates")
  for precision, seed in RUNS:
    losses, evaluated = train(config, precision, seed, photographs, held_out)
    means = [losses[end - args.steps // 4:end].mean() for end in quarters]
    print(f"{precision:8} seed {seed}: " + "  ".join(f"{mean:.4f}" for mean in means) + f"  | {np.mean(evaluated):.4f}",
          flush=True)


if __name__ == "__main__":
  main()
