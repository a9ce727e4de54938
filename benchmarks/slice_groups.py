"""Measures the gradient of the scan over slices on CPU, with the slices in groups of several sizes.

    python benchmarks/slice_groups.py [--config mlic_plus_plus] [--batch 2] [--crop 256] [--turns 5] SIZES [SIZES ...]

SIZES are the sizes of the groups, such as 2,2,2,2,2 for ten slices. It prints CPU seconds (user and system) to trace
and lower, to compile, and the median of the runs, which take turns. The inputs are random.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.training.config_schema import load_config, model_config
from mlic_jax.training.part_programs import scan_gradient
from mlic_jax.training.pmap_programs import CPU_OPTIONS, build_options


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("sizes", nargs="+", metavar="SIZES", help="Sizes of the groups, such as 2,2,2,2,2.")
  parser.add_argument("--config", default="mlic_plus_plus", help="Config. Default: %(default)s.")
  parser.add_argument("--batch", type=int, default=2, help="Crops. Default: %(default)s.")
  parser.add_argument("--crop", type=int, default=256, help="Side of the crops in pixels. Default: %(default)s.")
  parser.add_argument("--turns", type=int, default=5, help="Runs of every program. Default: %(default)s.")
  args = parser.parse_args()
  config = load_config(args.config, [])
  codec = model_config(config, args.config)
  quality, side = 1.0 if codec.num_rates else None, side_multiple(codec)
  model = build(codec, **build_options(config))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), quality)["params"])
  x = jnp.zeros((args.batch, args.crop, args.crop, 3))
  y, z = jax.eval_shape(lambda params: model.apply({"params": params}, x, quality, method="analyze"), params)
  rng = np.random.default_rng(0)
  draw = lambda shape: jnp.asarray(rng.normal(scale=0.03, size=shape.shape), jnp.float32)
  part = {name: each for name, each in params.items() if name in ("h_s", "slices") or not isinstance(each, dict)}
  arguments = jax.tree.map(draw, (part, y, z, y, y))
  programs, seconds = {}, {}
  for sizes in args.sizes:
    variant = model.clone(scan_unroll=1, scan_groups=tuple(map(int, sizes.split(","))))
    times = [time.process_time()]
    lowered = jax.jit(scan_gradient(variant), compiler_options=CPU_OPTIONS).lower(*arguments)
    times.append(time.process_time())
    programs[sizes], seconds[sizes] = lowered.compile(), []
    times.append(time.process_time())
    print(f"{sizes}: trace and lower {times[1] - times[0]:.1f}, compile {times[2] - times[1]:.1f}", flush=True)
  for turn in range(args.turns + 1):
    for sizes, program in programs.items():
      start = time.process_time()
      jax.block_until_ready(program(*arguments))
      if turn:  # the first one also loads the program
        seconds[sizes].append(time.process_time() - start)
  for sizes, found in seconds.items():
    print(f"{sizes}: run {statistics.median(found):.2f}")


if __name__ == "__main__":
  main()
