"""Measures the parts of a training step: the transforms, the optimizer, and the rest with the entropy model.

    python benchmarks/step_breakdown.py [--config configs/nano.py] [--crop 128] [--batch 8] [--config.FIELD=VALUE ...]

Whole step, transforms (g_a and g_s, forward and backward) and optimizer (update and sum) are timed in turn, each as a
function of its own. The rest of the step is h_a, h_s, the scan over the slices, the loss and the average of parameters.
It prints medians. Run it without other load on the machine.
"""
import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # like train.py

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.throughput import timed, training
from mlic_jax import build
from mlic_jax.errors import ConfigError
from mlic_jax.model.complexity import describe
from mlic_jax.runtime import compilation_cache
from mlic_jax.training.config_schema import load_config, model_config
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import create_state


def parse() -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/nano.py", help="Config. Default: %(default)s.")
  parser.add_argument("--crop", type=int, default=128, help="Side of the crops in pixels. Default: %(default)s.")
  parser.add_argument("--batch", type=int, default=8, help="Crops per step. Default: %(default)s.")
  parser.add_argument("--repeats", type=int, default=9, help="Number of runs. Default: %(default)s.")
  return parser.parse_known_args()


def transforms(params, model, crop: int, batch: int) -> Callable:
  """Returns a function that computes the gradient of g_s after g_a for a batch."""
  x = jnp.asarray(np.random.default_rng(0).uniform(size=(batch, crop, crop, 3)), jnp.float32)
  error = lambda params: jnp.mean((model.apply({"params": params}, x, method=lambda m, x: m.g_s(m.g_a(x))) - x)**2)
  gradient = jax.jit(jax.grad(error))
  return lambda: gradient(params)


def optimizer_alone(config, params) -> Callable:
  """Returns a function that takes an optimizer step with a fixed gradient; the state is updated."""
  optimizer = make_optimizer(config)
  state, gradient = [optimizer.init(params)], jax.tree.map(lambda p: 1e-3 * jnp.sign(p + 1e-9), params)

  @jax.jit
  def update(gradient, state, params):
    steps, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, steps), state

  def run():
    changed, state[0] = update(gradient, state[0], params)
    return changed
  return run


def main() -> None:
  args, overrides = parse()
  compilation_cache.enable()
  try:
    config = load_config(args.config, overrides)
    model = build(model_config(config, args.config))
  except ConfigError as error:
    raise SystemExit(f"error: {error}") from error
  params = create_state(config, model, make_optimizer(config)).params
  step, _ = training(config, model, args.crop, args.batch)
  runs = {"whole step": step, "transforms": transforms(params, model, args.crop, args.batch),
          f"optimizer ({config.optimizer})": optimizer_alone(config, params)}
  for run in runs.values():
    timed(run), timed(run)
  seconds = {name: [] for name in runs}
  for _ in range(args.repeats):
    for name, run in runs.items():
      seconds[name].append(timed(run))
  median = {name: statistics.median(each) for name, each in seconds.items()}
  whole, *parts = median.values()
  kmacs = sum(part.kmacs for part in describe(model.config, args.crop, args.crop))
  print(f"{' '.join([args.config, *overrides])} on {jax.device_count()} x {jax.devices()[0].device_kind}, jax "
        f"{jax.__version__}; {args.batch} crops of {args.crop}x{args.crop}, {kmacs:.1f} kMACs per pixel")
  for name, each in (*median.items(), ("the rest", whole - sum(parts))):
    print(f"{name:<20} {each:.3f} s  {each / whole:>4.0%}")
  least, *_, most = sorted(seconds["whole step"])
  print(f"{args.batch / whole:.1f} crops per second, {least:.3f} to {most:.3f} s per step")


if __name__ == "__main__":
  main()
