"""Measures the time of encoding and decoding by stage.

    python benchmarks/codec_latency.py --ckpt checkpoints/nano [--image IMAGE] [--repeats 5]
    python benchmarks/codec_latency.py --config configs/mlic_plus_plus.py [--height 512 --width 768]

Each stage is timed until its results are computed:

    analysis       g_a and h_a                              encoder only
    priors         h_s and the passes of the slices
    synthesis      the last pass and g_s                    decoder only
    range coder    symbols to bytes, bytes to symbols
    other          the rest: transfers to the host, Python, checksums

It prints medians over runs with a stopwatch around every stage. "whole" is the median over runs without stopwatches, in
which stages may overlap. The first call is reported separately, because it compiles or reads the compilation cache. Run
it without other load on the machine.
"""
import argparse
import collections
import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # like train.py, eval.py and the command line

import jax
import numpy as np

from mlic_jax import Codec, build
from mlic_jax.coding import jit_functions
from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model
from mlic_jax.coding.rangecoder import Decoder, Encoder
from mlic_jax.data.image_io import load_image
from mlic_jax.runtime import compilation_cache
from mlic_jax.training.config_schema import load_config, model_config
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import create_state

NETWORKS = {"analyze": "analysis", "start": "priors", "nonanchors": "priors", "advance": "priors",
            "symbols": "priors", "finish": "synthesis"}   # functions of coding/jit_functions.py
CODER = [(Encoder, "__init__"), (Encoder, "encode"), (Encoder, "finish"),
         (Decoder, "__init__"), (Decoder, "decode"), (Decoder, "finish")]


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  model = parser.add_mutually_exclusive_group(required=True)
  model.add_argument("--ckpt", type=Path, help="Measure this model directory.")
  model.add_argument("--config", help="Measure an initialized model of this config. Its networks take as long as those "
                     "of a trained model, but its range coder does not.")
  parser.add_argument("--image", type=Path, help="Image to code. Default: smooth noise of the given size.")
  parser.add_argument("--height", type=int, default=512, help="Height of the noise. Default: %(default)s.")
  parser.add_argument("--width", type=int, default=768, help="Width of the noise. Default: %(default)s.")
  parser.add_argument("--quality", type=float, help="Quality of a variable-rate model. Default: the middle.")
  parser.add_argument("--repeats", type=int, default=5, help="Number of runs. Default: %(default)s.")
  return parser.parse_args()


def initialized_codec(path: str) -> Codec:
  """Returns the codec of a config with the initial parameters of training."""
  config = load_config(path)
  model = build(model_config(config, path))
  variables = {"params": jax.device_get(create_state(config, model, make_optimizer(config)).params)}
  return Codec(Model(Path(path).stem, model.config, variables, build_table(model.config, variables), bytes(8), None))


def smooth_noise(height: int, width: int) -> np.ndarray:
  """Returns noise (height, width, 3) uint8 with structures of 8, 32 and 128 pixels."""
  rng, image = np.random.default_rng(0), np.zeros((height, width, 3))
  for cell in (8, 32, 128):
    coarse = rng.normal(0, cell**0.5, (height // cell + 1, width // cell + 1, 3))
    image += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
  return np.uint8(np.clip(128 + 4 * image, 0, 255))


class Stopwatch:
  """Adds up the seconds of each stage, from the call of its functions until their results are computed."""

  def __init__(self):
    self.seconds = collections.Counter()

  def around(self, stage: str, function: Callable) -> Callable:
    def timed(*args, **kwargs):
      start = time.perf_counter()
      result = jax.block_until_ready(function(*args, **kwargs))
      self.seconds[stage] += time.perf_counter() - start
      return result
    return timed

  @contextlib.contextmanager
  def running(self):
    """Times all stages of the codec within the context."""
    with contextlib.ExitStack() as stack:
      for name, stage in NETWORKS.items():
        function = getattr(jit_functions, name)
        stack.enter_context(mock.patch.object(jit_functions, name, self.around(stage, function)))
      for owner, name in CODER:
        stack.enter_context(mock.patch.object(owner, name, self.around("range coder", getattr(owner, name))))
      yield


def seconds_of(run: Callable) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def report(name: str, run: Callable, pixels: int, repeats: int) -> None:
  """Prints the medians of encoding or decoding."""
  first = seconds_of(run)
  whole = [seconds_of(run) for _ in range(repeats)]
  stages, outside = collections.defaultdict(list), []
  for _ in range(repeats):
    watch = Stopwatch()
    with watch.running():
      total = seconds_of(run)
    networks = sum(watch.seconds[stage] for stage in set(NETWORKS.values()))
    for stage in ("analysis", "priors", "synthesis", "range coder"):
      stages[stage].append(watch.seconds[stage])
    stages["other"].append(total - sum(watch.seconds.values()))
    outside.append(1 - networks / total)
  median = statistics.median(whole)
  print(f"{name}: whole {median:.3f} s ({min(whole):.3f} to {max(whole):.3f}), "
        f"{pixels / median / 1e6:.2f} megapixels/s, first call {first:.1f} s")
  for stage, seconds in stages.items():
    print(f"  {stage:<12} {statistics.median(seconds):8.4f} s")
  print(f"  outside the networks: {statistics.median(outside):.1%}")


def main() -> None:
  args = parse()
  compilation_cache.enable()
  codec = Codec.load(args.ckpt) if args.ckpt else initialized_codec(args.config)
  image = load_image(args.image) if args.image else smooth_noise(args.height, args.width)
  height, width = image.shape[:2]
  peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  before = peak()
  device = jax.devices()[0].device_kind
  print(f"{codec.name} on {jax.device_count()} x {device}, jax {jax.__version__}, {width}x{height}")
  report("encode", lambda: codec.encode(image, args.quality), height * width, args.repeats)
  blob = codec.encode(image, args.quality)
  report("decode", lambda: codec.decode(blob), height * width, args.repeats)
  print(f"{len(blob)} bytes, {8 * len(blob) / (height * width):.3f} bpp; peak memory of the process {peak():.2f} GB, "
        f"{before:.2f} GB before the first image")


if __name__ == "__main__":
  main()
