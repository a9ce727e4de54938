"""Gain of skip coding, by scale or by the selection map of a model, and the share of elements that is skipped.

    python benchmarks/skip_coding.py --ckpt CKPT --data PHOTOGRAPHS [--images 8] [--crop 256] [--qualities 1,3,6]
                                   [--scales 0.12,0.15,0.2,0.25,0.3] [--chances 0.01,0.02,0.05,0.1,0.2]

A table on held-out photographs, the middle of each, from files and the pictures in them: the BD-rate against the files
with all elements; the loss, bpp + lmbda * distortion as in training, the rate and the PSNR, means over photographs and
qualities; and the share of the elements that is left out. --chances are those below which a map leaves an element out,
of a model that has one. --holdout-every has to be that of the training.
"""
import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # as train.py, eval.py and the command line do

import numpy as np

from mlic_jax import Codec
from mlic_jax.coding.checkpoint_io import Model, load_model
from mlic_jax.coding.latent_optimizer import LatentOptimizer
from mlic_jax.data import loader
from mlic_jax.evaluation.bd_rate import Curve, bd_rate
from mlic_jax.metrics import psnr


def measure(codec: Codec, objective: LatentOptimizer, image: np.ndarray, quality: float) -> dict[str, float]:
  """Rate, PSNR and loss of the file of an image, which has to decode to the image that the encoder predicted."""
  blob, predicted = codec.encode_with_reconstruction(image, quality)
  decoded = codec.decode(blob)
  if not np.array_equal(decoded, predicted):
    raise SystemExit(f"{codec.name}: a file decodes to another image than was predicted")
  y_bits, _ = codec.element_bits(image, quality)
  return dict(bpp=8 * len(blob) / (image.shape[0] * image.shape[1]), psnr=psnr(image, decoded),
              loss=objective.loss_of_file(image, quality, blob, decoded), share=np.mean(y_bits == 0))


def with_chance(model: Model, chance: float) -> Codec:
  """The codec, whose map leaves out elements below another chance."""
  options = dict(model.config.options, selection_chance=chance)
  return Codec(model._replace(config=dataclasses.replace(model.config, options=options)))


def main(argv=None) -> None:
  numbers = lambda text: [float(each) for each in text.split(",")]
  parser = argparse.ArgumentParser(description="Leaving out elements of small scale, on held-out photographs.")
  parser.add_argument("--ckpt", required=True, help="a variable-rate model")
  parser.add_argument("--data", required=True, help="the photographs that were trained on; those held out are taken")
  parser.add_argument("--holdout-every", type=int, default=24)
  parser.add_argument("--images", type=int, default=8)
  parser.add_argument("--crop", type=int, default=256)
  parser.add_argument("--qualities", type=numbers, help="default: all")
  parser.add_argument("--scales", type=numbers, default=[0.12, 0.15, 0.2, 0.25, 0.3])
  parser.add_argument("--chances", type=numbers, default=[0.01, 0.02, 0.05, 0.1, 0.2])
  args = parser.parse_args(argv)
  model, codec = load_model(args.ckpt), Codec.load(args.ckpt)
  whole = codec.with_options(use_map=False)
  ways = [("all", whole), *((f"scales above {scale:g}", whole.with_options(skip=scale)) for scale in args.scales)]
  if codec.coder.has_map:
    ways += [(f"map, chance {chance:g}", with_chance(model, chance)) for chance in args.chances]
  qualities, objective = args.qualities or codec.qualities, whole.with_options(refine=1).optimizer
  _, others = loader.split(args.data, "", args.holdout_every)
  images = loader.eval_images(others, args.crop, args.images)
  print(f"{codec.name} {codec.fingerprint.hex()}, {len(images)} held-out photographs, {args.crop}x{args.crop}, "
        f"qualities {', '.join(f'{quality:g}' for quality in qualities)}\n")
  print("| coded | BD-rate | loss | bits | PSNR | left out |\n|---|---:|---:|---:|---:|---:|")
  first = None
  for name, chosen in ways:
    rows = [[measure(chosen, objective, image, quality) for image in images] for quality in qualities]
    mean = lambda field, of: statistics.mean(row[field] for row in of)
    curve = Curve(chosen.name, *np.array([(mean("bpp", of), mean("psnr", of)) for of in rows]).T)
    first = first or (rows, curve)
    change = lambda field: statistics.mean(100 * (row[field] / old[field] - 1) for of, olds in zip(rows, first[0])
                                           for row, old in zip(of, olds))
    every = [row for of in rows for row in of]
    bd = bd_rate(curve, first[1])["percent"] if chosen is not whole and len(qualities) > 1 else None
    decibels = mean("psnr", every) - statistics.mean(row["psnr"] for of in first[0] for row in of)
    print(f"| {name} | {'' if bd is None else f'{bd:+.2f} %'} | "
          f"{change('loss'):+.2f} % | {change('bpp'):+.2f} % | {decibels:+.2f} dB | "
          f"{100 * mean('share', every):.0f} % |", flush=True)


if __name__ == "__main__":
  main()
