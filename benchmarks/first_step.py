"""Measures what comes before the first training step, and the steps after it, in several checkouts in turns.

    python benchmarks/first_step.py [--config nano] [--batch 16] [--crop 128] [--turns 3] [--config.FIELD=VALUE ...]
                                    [CHECKOUT ...]

Without a CHECKOUT it measures this one. Each turn runs a process for every checkout. It prints medians of CPU seconds
(user and system): tracing and lowering, compiling, and one step. The caches are off. CPU seconds do not depend on how
many cores are free, but other work on the same core makes them longer, so run it without other load on the machine.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("trace and lower", "compile", "step")


def measure(config_name: str, batch: int, crop: int, steps: int, overrides: list[str]) -> dict[str, float]:
  """Returns CPU seconds by column, measured in this process with the package that it imports."""
  import time

  import jax
  import jax.numpy as jnp
  import numpy as np

  from mlic_jax.model.mlic import build
  from mlic_jax.training import pmap_programs
  from mlic_jax.training.config_schema import load_config, model_config
  from mlic_jax.training.optimizer import make_optimizer
  from mlic_jax.training.step import create_state
  config = load_config(config_name, [f"--config.batch_size={batch}", f"--config.crop_size={crop}", *overrides])
  codec, devices = model_config(config, config_name), jax.devices()[:1]
  program, arguments = pmap_programs.training_program(config, codec, devices)
  times = [time.process_time()]
  lowered = program.lower(*arguments)
  times.append(time.process_time())
  step = lowered.compile()
  times.append(time.process_time())
  model = build(codec, **pmap_programs.build_options(config))
  state = create_state(config, model, make_optimizer(config, devices[0].platform))
  state = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], state)
  x = np.random.default_rng(0).integers(0, 256, arguments[1].shape, np.uint8)
  seconds = []
  for _ in range(steps + 1):  # the first one also loads the program
    start = time.process_time()
    state, *_ = jax.block_until_ready(step(state, x, *arguments[2:]))
    seconds.append(time.process_time() - start)
  return dict(zip(COLUMNS, (times[1] - times[0], times[2] - times[1], statistics.median(seconds[1:]))))


def measure_checkout(checkout: Path, options: list[str]) -> dict[str, float]:
  """Returns the result of `measure` in a process of its own, with the package of a checkout."""
  environment = os.environ | {"PYTHONPATH": str(checkout), "MLIC_JAX_CACHE": "", "JAX_PLATFORMS": "cpu",
                              "JAX_ENABLE_COMPILATION_CACHE": "0"}
  done = subprocess.run([sys.executable, __file__, "--measure", *options], check=True, cwd=checkout, env=environment,
                        stdout=subprocess.PIPE, text=True)
  found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT",
                      help="Checkout of this repository. Default: this one.")
  parser.add_argument("--config", default="nano", help="Config. Default: %(default)s.")
  parser.add_argument("--batch", type=int, default=16, help="Crops per step. Default: %(default)s.")
  parser.add_argument("--crop", type=int, default=128, help="Side of the crops in pixels. Default: %(default)s.")
  parser.add_argument("--steps", type=int, default=5, help="Steps of each run. Default: %(default)s.")
  parser.add_argument("--turns", type=int, default=3, help="Runs of every checkout. Default: %(default)s.")
  parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
  args, overrides = parser.parse_known_args()
  if unknown := [each for each in overrides if not each.startswith("--config.")]:
    parser.error(f"unknown arguments {' '.join(unknown)}")
  if args.measure:
    print(json.dumps(measure(args.config, args.batch, args.crop, args.steps, overrides)))
    return
  options = [*(f"--{name}={getattr(args, name)}" for name in ("config", "batch", "crop", "steps")), *overrides]
  checkouts = [each.resolve() for each in args.checkouts] or [ROOT]
  results: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
  for turn in range(args.turns):
    for checkout in checkouts:
      results[checkout].append(found := measure_checkout(checkout, options))
      line = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found.items())
      print(f"turn {turn + 1} of {args.turns}, {checkout}: {line}", file=sys.stderr, flush=True)
  print("checkout".ljust(40) + "".join(name.rjust(18) for name in COLUMNS))
  for checkout, found in results.items():
    print(str(checkout).ljust(40) + "".join(f"{statistics.median(each[name] for each in found):18.2f}"
                                            for name in COLUMNS))


if __name__ == "__main__":
  main()
