"""Measures the time of encoding and decoding an image with every distribution of y, against the Gaussian.

    python benchmarks/distributions.py --ckpt checkpoints/nano --image photo.png

The networks are those of a Gaussian checkpoint, so symbols and scales are the same with each distribution; no model was
trained for its distribution. Codecs take turns, round after round. A time is the median over the rounds, and a ratio
the median of the ratios to the Gaussian of the same round.
"""
import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # like train.py, eval.py and the command line

import numpy as np

from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model, load_model
from mlic_jax.coding.codec import Codec
from mlic_jax.data.image_io import load_image
from mlic_jax.model.distributions import make_distribution

SHAPES = (0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0)
DISTRIBUTIONS = {
    "gaussian": ("gaussian", {}), "laplace": ("laplace", {}), "logistic": ("logistic", {}),
    "generalized_gaussian, one shape": ("generalized_gaussian", dict(shapes=(1.4,))),
    "generalized_gaussian, by channel": ("generalized_gaussian", dict(shapes=SHAPES, shape_per="channel",
                                                                      level_shifts=True)),
    "generalized_gaussian, by element": ("generalized_gaussian", dict(shapes=SHAPES, shape_per="element")),
    "gaussian_mixture, not portable": ("gaussian_mixture", dict(mixture_components=2))}


def main() -> None:
  args = _arguments()
  model = load_model(args.ckpt)
  rng = np.random.default_rng(0)
  image = load_image(args.image) if args.image else rng.integers(0, 256, (512, 768, 3), np.uint8)
  codecs = {name: with_distribution(model, *each) for name, each in DISTRIBUTIONS.items()}
  seconds = {name: ([], []) for name in codecs}
  sizes = {}
  for round_index in range(args.rounds + 1):             # the first compiles
    for name, codec in codecs.items():
      times = [time.perf_counter()]
      blob = codec.encode(image, args.quality)
      times.append(time.perf_counter())
      codec.decode(blob)
      times.append(time.perf_counter())
      sizes[name] = len(blob)
      if round_index:
        for of_step, spent in zip(seconds[name], np.diff(times)):
          of_step.append(spent)
  print(f"{image.shape[1]}x{image.shape[0]}, quality {args.quality:g}, {args.rounds} rounds")
  print("| distribution | encode s | ratio | decode s | ratio | bytes |\n|---|---:|---:|---:|---:|---:|")
  for name, steps in seconds.items():
    ratios = [statistics.median(np.divide(ours, first)) for ours, first in zip(steps, seconds["gaussian"])]
    cells = [f"{statistics.median(times):.3f} | {ratio:.2f}" for times, ratio in zip(steps, ratios)]
    print(f"| {name} | {' | '.join(cells)} | {sizes[name]} |")


def with_distribution(model: Model, distribution: str, options: dict) -> Codec:
  """The codec of a model with another distribution; outputs that it lacks are zeros."""
  own = sys.modules[make_distribution(model.config).__module__]
  kept = {name: value for name, value in dict(model.config.options).items() if name not in getattr(own, "OPTIONS", ())}
  config = dataclasses.replace(model.config, distribution=distribution, options=kept | options)
  found = make_distribution(config)
  params = dict(model.variables["params"])
  steps = dict(params["slices"]["steps"])
  for network in "entropy_anchor", "entropy_nonanchor":
    layers = dict(steps[network])
    last = max(layers)                                   # conv0, conv1, ...
    missing = (found.outputs - 2) * config.slice_channels
    layers[last] = {name: np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, missing)])
                    for name, value in layers[last].items()}
    steps[network] = layers
  if found.channel_parameters:
    steps["distribution_parameters"] = {
        name: np.full((config.num_slices, config.slice_channels), start, np.float32)
        for name, start in found.channel_parameters.items()}
  variables = {"params": params | {"slices": dict(params["slices"], steps=steps)}}
  codec = Codec(Model(distribution, config, variables, build_table(config, variables), bytes(8), None), "numba")
  return codec.with_options(portable=False) if found.not_portable else codec


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--ckpt", default="checkpoints/nano",
                      help="Take the networks of this model directory, which has a Gaussian. Default: %(default)s.")
  parser.add_argument("--image", type=Path, help="Code this image. Default: noise of 768x512 pixels.")
  parser.add_argument("--quality", type=float, default=3.0, help="Code at this quality. Default: %(default)s.")
  parser.add_argument("--rounds", type=int, default=9, help="Measure so many rounds. Default: %(default)s.")
  return parser.parse_args()


if __name__ == "__main__":
  main()
