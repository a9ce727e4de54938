"""Compares the throughput of a codec, forward and in training, with that of a convolution on this machine.

    python benchmarks/throughput.py [--config configs/mlic_plus_plus.py] [--height 512 --width 768] [--repeats 5]

The reference is XLA's 3x3 convolution, 192 to 192 channels, 128x192 pixels. It is timed in turn with the codec, so
changes of the clock rate affect both. On CPU a codec can exceed it: mlic_jax/kernels/winograd.py needs half of the
multiplications, which are counted in full here. Multiply-accumulates are those of `mlic-jax describe`, which counts
every layer of a slice at every position of y, like the authors. A training step counts as three forward passes. It
prints medians and ratios. Run it without other load on the machine.
"""
import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.runtime.huge_pages import keep_freed_memory, use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # like train.py, eval.py and the command line

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax import build
from mlic_jax.model.complexity import describe
from mlic_jax.runtime import compilation_cache
from mlic_jax.training import parallel, pmap_programs
from mlic_jax.training.config_schema import load_config, model_config
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.preemption import NO_SIGNALS
from mlic_jax.training.step import create_state, make_train_step

CONV_SHAPE, CONV_KERNEL = (1, 128, 192, 192), (3, 3, 192, 192)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/mlic_plus_plus.py", help="Config. Default: %(default)s.")
  parser.add_argument("--height", type=int, default=512,
                      help="Height of the image of the forward pass. Default: %(default)s.")
  parser.add_argument("--width", type=int, default=768,
                      help="Width of the image of the forward pass. Default: %(default)s.")
  parser.add_argument("--crop", type=int, default=256, help="Side of the training crops. Default: %(default)s.")
  parser.add_argument("--batch", type=int, default=1, help="Crops per training step. Default: %(default)s.")
  parser.add_argument("--repeats", type=int, default=5, help="Number of runs. Default: %(default)s.")
  parser.add_argument("--only", choices=("forward", "training"), help="Measure only this. Default: both.")
  return parser.parse_args()


def timed(run: Callable) -> float:
  """Returns the seconds until the result of run() is computed."""
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def convolution() -> tuple[Callable, float]:
  """Returns the reference convolution, and its floating-point operations."""
  rng = np.random.default_rng(0)
  x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (CONV_SHAPE, CONV_KERNEL))
  conv = jax.jit(lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)),
                                                        dimension_numbers=("NHWC", "HWIO", "NHWC")))
  return lambda: conv(x), 2.0 * np.prod(CONV_SHAPE) * np.prod(CONV_KERNEL[:3])


def forward(config, model, height: int, width: int) -> tuple[Callable, float]:
  """Returns a function for reconstruction and bits of one image, and its floating-point operations."""
  quality = 1.0 if model.config.num_rates else None
  x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, height, width, 3)), jnp.float32)
  variables = {"params": create_state(config, model, make_optimizer(config)).params}
  run = jax.jit(lambda variables, x: model.apply(variables, x, quality))
  return lambda: run(variables, x), flops(model, height, width)


def training(config, model, crop: int, batch: int) -> tuple[Callable, float]:
  """Returns the training step of train.py on one device, which updates its state, and its floating-point operations."""
  optimizer = make_optimizer(config)
  state = [parallel.replicate(create_state(config, model, optimizer))]
  platform, own_programs = jax.devices()[0].platform, pmap_programs.has_own_programs()
  if own_programs:
    keep_freed_memory()
  train_step = make_train_step(config, model, optimizer, None, platform, own_programs)
  step = pmap_programs.training(train_step, own_programs=own_programs)
  x = parallel.shard(np.random.default_rng(0).integers(0, 256, (batch, crop, crop, 3), np.uint8))

  def run():
    state[0], *others = step(state[0], x, None, NO_SIGNALS)
    return state[0], others
  return run, 3 * batch * flops(model, crop, crop)


def flops(model, height: int, width: int) -> float:
  """Returns the floating-point operations of the forward pass, two per multiply-accumulate."""
  return 2000.0 * height * width * sum(part.kmacs for part in describe(model.config, height, width))


def report(name: str, run: Callable, operations: float, repeats: int) -> None:
  """Times `run` and the reference convolution in turn, and prints the results."""
  conv, conv_operations = convolution()
  compiled = timed(run)
  timed(conv)
  seconds, shares = [], []
  for _ in range(repeats):
    before = min(timed(conv) for _ in range(3))
    seconds.append(timed(run))
    reference = conv_operations / min(before, *(timed(conv) for _ in range(3)))
    shares.append(operations / seconds[-1] / reference)
  median = statistics.median(seconds)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  print(f"{name}: {median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {operations / 1e9:.0f} GFLOP at "
        f"{operations / median / 1e9:.0f} GFLOP/s, {statistics.median(shares):.0%} of a convolution's throughput; "
        f"first call {compiled:.1f} s, peak memory of the process {memory:.1f} GB")


def main() -> None:
  args = parse()
  compilation_cache.enable()
  config = load_config(args.config)
  model = build(model_config(config, args.config))
  print(f"{args.config} on {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
  if args.only != "training":
    report(f"forward, {args.width}x{args.height}", *forward(config, model, args.height, args.width), args.repeats)
  if args.only != "forward":
    report(f"training step, {args.batch} x {args.crop}x{args.crop}",
           *training(config, model, args.crop, args.batch), args.repeats)


if __name__ == "__main__":
  main()
