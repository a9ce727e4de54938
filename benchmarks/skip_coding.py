"""Measures the gain of skip coding, by scale or by the selection map of a model, and the share of skipped elements.

    python benchmarks/skip_coding.py --ckpt CKPT --data IMAGES [--images 8] [--crop 256] [--qualities 1,3,6]
                                   [--scales 0.12,0.15,0.2,0.25,0.3] [--chances 0.01,0.02,0.05,0.1,0.2]

It prints a table for the middle of held-out images, from complete files: the BD-rate against files with all elements;
the changes of loss (bpp + lmbda * distortion, as in training), bits and PSNR, averaged over images and qualities; and
the share of skipped elements. --chances are the probabilities below which a selection map skips an element.
--holdout-every has to be that of the training.
"""
import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # like train.py, eval.py and the command line

import numpy as np

from mlic_jax import Codec
from mlic_jax.coding.checkpoint_io import Model, load_model
from mlic_jax.coding.latent_optimizer import LatentOptimizer
from mlic_jax.data import loader
from mlic_jax.evaluation.bd_rate import Curve, bd_rate
from mlic_jax.metrics import psnr


def measure(codec: Codec, objective: LatentOptimizer, image: np.ndarray, quality: float) -> dict[str, float]:
  """Returns rate, PSNR and loss of the file of an image. The file has to decode to the prediction of the encoder."""
  blob, predicted = codec.encode_with_reconstruction(image, quality)
  decoded = codec.decode(blob)
  if not np.array_equal(decoded, predicted):
    raise SystemExit(f"error: {codec.name}: a file decodes to another image than the encoder predicted")
  y_bits, _ = codec.element_bits(image, quality)
  return dict(bpp=8 * len(blob) / (image.shape[0] * image.shape[1]), psnr=psnr(image, decoded),
              loss=objective.loss_of_file(image, quality, blob, decoded), share=np.mean(y_bits == 0))


def with_chance(model: Model, chance: float) -> Codec:
  """Returns the codec with another threshold of its selection map."""
  options = dict(model.config.options, selection_chance=chance)
  return Codec(model._replace(config=dataclasses.replace(model.config, options=options)))


def main(argv=None) -> None:
  numbers = lambda text: [float(each) for each in text.split(",")]
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--ckpt", required=True, help="Model directory of a variable-rate model. Required.")
  parser.add_argument("--data", required=True,
                      help="Training images of the model; its held-out images are used. Required.")
  parser.add_argument("--holdout-every", type=int, default=24, help="As in the training. Default: %(default)s.")
  parser.add_argument("--images", type=int, default=8, help="Number of images. Default: %(default)s.")
  parser.add_argument("--crop", type=int, default=256, help="Side of the crops in pixels. Default: %(default)s.")
  parser.add_argument("--qualities", type=numbers, help="Qualities. Default: all.")
  parser.add_argument("--scales", type=numbers, default=[0.12, 0.15, 0.2, 0.25, 0.3],
                      help="Values of --skip. Default: 0.12,0.15,0.2,0.25,0.3.")
  parser.add_argument("--chances", type=numbers, default=[0.01, 0.02, 0.05, 0.1, 0.2],
                      help="Thresholds of a selection map. Default: 0.01,0.02,0.05,0.1,0.2.")
  args = parser.parse_args(argv)
  model, codec = load_model(args.ckpt), Codec.load(args.ckpt)
  whole = codec.with_options(use_map=False)
  variants = [("all", whole), *((f"scales above {scale:g}", whole.with_options(skip=scale)) for scale in args.scales)]
  if codec.coder.has_map:
    variants += [(f"map, chance {chance:g}", with_chance(model, chance)) for chance in args.chances]
  qualities, objective = args.qualities or codec.qualities, whole.with_options(refine=1).optimizer
  _, others = loader.split(args.data, "", args.holdout_every)
  images = loader.eval_images(others, args.crop, args.images)
  print(f"{codec.name} {codec.fingerprint.hex()}, {len(images)} held-out photographs, {args.crop}x{args.crop}, "
        f"qualities {', '.join(f'{quality:g}' for quality in qualities)}\n")
  print("| coded | BD-rate | loss | bits | PSNR | skipped |\n|---|---:|---:|---:|---:|---:|")
  first = None
  for name, variant in variants:
    rows = [[measure(variant, objective, image, quality) for image in images] for quality in qualities]
    mean = lambda field, rows: statistics.mean(row[field] for row in rows)
    curve = Curve(variant.name, *np.array([(mean("bpp", each), mean("psnr", each)) for each in rows]).T)
    first = first or (rows, curve)
    change = lambda field: statistics.mean(100 * (row[field] / old[field] - 1) for each, olds in zip(rows, first[0])
                                           for row, old in zip(each, olds))
    every = [row for each in rows for row in each]
    bd = bd_rate(curve, first[1])["percent"] if variant is not whole and len(qualities) > 1 else None
    decibels = mean("psnr", every) - statistics.mean(row["psnr"] for each in first[0] for row in each)
    print(f"| {name} | {'' if bd is None else f'{bd:+.2f} %'} | "
          f"{change('loss'):+.2f} % | {change('bpp'):+.2f} % | {decibels:+.2f} dB | "
          f"{100 * mean('share', every):.0f} % |", flush=True)


if __name__ == "__main__":
  main()
