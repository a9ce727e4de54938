"""Measures gain and cost of latent optimization, by relaxation and number of steps.

    python benchmarks/latent_optimization.py --ckpt CKPT --data IMAGES [--images 8] [--crop 256] [--qualities 1,3,6]
                                    [--relaxations atanh,linear,sigmoid,noise] [--steps 25,50,100,200,500] [--keep FILE]
                                    [--learning_rate 0.03] [--hot 1] [--cold 0.3]
    python benchmarks/latent_optimization.py --cost --config configs/nano.py [--crop 256] [--batch 1]
    python benchmarks/latent_optimization.py --watch 10 --config configs/mlic_plus_plus.py [--crop 256]

The first command prints tables for the middle of held-out photographs: the change of the loss of the file, bpp + lmbda
* distortion, averaged over photographs and qualities, and the changes of bits and PSNR. Unlike in `encode`, a file that
is worse than without latent optimization counts as well. "noise" optimizes under the noise of training, without
annealing. Measurements are cached in FILE, as one line of JSON each. --holdout-every has to be that of the training.

--cost prints seconds per pixel of an optimization step and of a training step, timed in turn, and their ratio. Run it
without other load on the machine. --watch prints the loss of the rounded latents of an image step by step, for the
weights of tests/helpers/golden_fill.py, and the peak memory of the process.
"""
import argparse
import itertools
import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # like train.py, eval.py and the command line

import jax
import numpy as np

from mlic_jax import Codec, build
from mlic_jax.coding import latent_optimization
from mlic_jax.coding.latent_optimization import Schedule, refine
from mlic_jax.data import loader
from mlic_jax.evaluation.results_cache import digest
from mlic_jax.metrics import psnr
from mlic_jax.model.quantizers import NOISE
from mlic_jax.model.soft_rounding import LOG_ODDS
from mlic_jax.runtime import compilation_cache


def noise(temperature):
  """Returns the noise of training instead of a relaxation of rounding."""
  return NOISE


SCHEDULE = ("learning_rate", "hot", "cold")  # fields of a Schedule that are options
RELAXATIONS = {**{name: name for name in LOG_ODDS}, "noise": noise}


def parse(argv=None) -> argparse.Namespace:
  numbers = lambda kind: lambda text: [kind(each) for each in text.split(",")]
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--ckpt", help="Model directory.")
  parser.add_argument("--data", help="Training images of the model; its held-out images are used.")
  parser.add_argument("--holdout-every", type=int, default=24, help="As in the training. Default: %(default)s.")
  parser.add_argument("--images", type=int, default=8, help="Number of images. Default: %(default)s.")
  parser.add_argument("--crop", type=int, default=256, help="Side of the crops in pixels. Default: %(default)s.")
  parser.add_argument("--qualities", type=numbers(float), help="Qualities. Default: all.")
  parser.add_argument("--relaxations", type=lambda text: text.split(","), default=list(RELAXATIONS),
                      help="Relaxations. Default: all.")
  parser.add_argument("--steps", type=numbers(int), default=[25, 50, 100, 200, 500],
                      help="Numbers of steps. Default: 25,50,100,200,500.")
  for name in SCHEDULE:
    parser.add_argument(f"--{name}", type=float, default=getattr(Schedule, name),
                        help=f"The field {name} of the Schedule. Default: %(default)s.")
  parser.add_argument("--keep", type=Path, metavar="FILE", help="Cache measurements in FILE. Default: off.")
  parser.add_argument("--cost", action="store_true", help="Measure the cost of a step. Default: off.")
  parser.add_argument("--watch", type=int, metavar="STEPS", help="Print the loss during STEPS steps. Default: off.")
  parser.add_argument("--config", default="configs/nano.py",
                      help="Config for --cost and --watch. Default: %(default)s.")
  parser.add_argument("--batch", type=int, default=1, help="Crops per training step of --cost. Default: %(default)s.")
  parser.add_argument("--repeats", type=int, default=5, help="Number of runs of --cost. Default: %(default)s.")
  args = parser.parse_args(argv)
  if unknown := set(args.relaxations) - set(RELAXATIONS):
    parser.error(f"--relaxations {','.join(unknown)}; wanted some of {','.join(RELAXATIONS)}")
  if not (args.cost or args.watch or args.ckpt and args.data):
    parser.error("wanted --ckpt and --data, or --cost, or --watch")
  return args


def measure(codec: Codec, image: np.ndarray, quality: float | None, schedule: Schedule) -> dict[str, float]:
  """Returns loss, bpp and PSNR of files of an image without latent optimization ("plain") and with it ("refined")."""
  optimizer = codec.with_options(refine=schedule).optimizer
  plain, loss = codec.latents(image, quality), optimizer.loss_of_latents(image, quality)
  gradient = optimizer.gradient_of_latents(image, quality)
  run = lambda schedule: refine((plain.y, plain.z), loss, jax.random.key(0), schedule, gradient=gradient)
  run(schedule.one_step())  # compiles
  start = time.perf_counter()
  y, z = jax.block_until_ready(run(schedule))
  row = {"seconds": time.perf_counter() - start}
  for name, latents in ("plain", plain), ("refined", plain._replace(y=y, z=z)):
    blob, decoded = codec.encode_latents_with_reconstruction(latents)
    row |= {f"{name}_loss": optimizer.loss_of_file(image, quality, blob, decoded), f"{name}_psnr": psnr(image, decoded),
            f"{name}_bpp": 8 * len(blob) / (image.shape[0] * image.shape[1])}
  return row


def table(args: argparse.Namespace) -> None:
  codec = Codec.load(args.ckpt)
  _, others = loader.split(args.data, "", args.holdout_every)
  images, known = loader.eval_images(others, args.crop, args.images), {}
  if args.keep and args.keep.exists():
    known = {json.dumps(key): row for key, row in map(json.loads, args.keep.read_text().splitlines())}
  rows, schedule = {}, {name: getattr(args, name) for name in SCHEDULE}
  for image, quality, kind, steps in itertools.product(images, args.qualities or codec.qualities, args.relaxations,
                                                       args.steps):
    key = json.dumps([codec.fingerprint.hex(), digest(image), quality, kind, steps, schedule])
    if key not in known:
      known[key] = measure(codec, image, quality, Schedule(steps, relaxation=RELAXATIONS[kind], **schedule))
      print(f"{quality} {kind} {steps}: {known[key]}", file=sys.stderr, flush=True)
      if args.keep:
        with args.keep.open("a") as file:
          file.write(json.dumps([json.loads(key), known[key]]) + "\n")
    rows.setdefault((kind, steps), []).append(known[key])
  print(f"{codec.name}, {len(images)} held-out photographs, {args.crop}x{args.crop}, qualities "
        f"{', '.join(map(str, args.qualities or codec.qualities))}; "
        f"{', '.join(f'{name} {value:g}' for name, value in schedule.items())}")
  change = lambda field: lambda row: 100 * (row[f"refined_{field}"] / row[f"plain_{field}"] - 1)
  for title, figure, form in (("loss, %", change("loss"), "+.2f"), ("bits, %", change("bpp"), "+.2f"),
                              ("PSNR, dB", lambda row: row["refined_psnr"] - row["plain_psnr"], "+.3f"),
                              ("seconds", lambda row: row["seconds"], ".1f")):
    print(f"\n| {title} | {' | '.join(f'{steps} steps' for steps in args.steps)} |\n|---{'|---:' * len(args.steps)}|")
    for kind in args.relaxations:
      cells = (format(statistics.mean(map(figure, rows[kind, steps])), form) for steps in args.steps)
      print(f"| `{kind}` | {' | '.join(cells)} |")


def cost(args: argparse.Namespace) -> float:
  """Prints the cost of a step, and returns its ratio to the cost of a training step, per pixel."""
  from benchmarks.codec_latency import initialized_codec, smooth_noise
  from benchmarks.throughput import timed, training
  from mlic_jax.training.config_schema import load_config, model_config
  config = load_config(args.config)
  image, codec = smooth_noise(args.crop, args.crop), initialized_codec(args.config)
  optimizer = codec.with_options(refine=1, lmbda=0.01).optimizer
  quality = codec.choose_quality(None)
  latents, gradient = codec.latents(image, quality), optimizer.gradient_of_latents(image, quality)
  state = [((latents.y, latents.z), latent_optimization.first_moments((latents.y, latents.z)))]

  def optimize():
    state[0] = latent_optimization._step(*state[0], gradient, jax.random.key(0), 0.5, 1e-2, Schedule.relaxation)
    return state[0]

  print(f"{args.config} on {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
  before, first = peak_memory(), timed(optimize)
  print(f"latent optimization of {args.crop}x{args.crop}: first step {first:.1f} s, "
        f"peak memory of the process {peak_memory():.2f} GB, {before:.2f} GB before", flush=True)
  step = training(config, build(model_config(config, args.config)), args.crop, args.batch)[0]
  print(f"training {args.batch} x {args.crop}x{args.crop}: first step {timed(step):.1f} s", flush=True)
  for run in step, optimize:
    timed(run)
  seconds = {run: [] for run in (step, optimize)}
  for _ in range(args.repeats):
    for run, times in seconds.items():
      times.append(timed(run))
  pixels = args.crop**2
  training_s, optimization_s = statistics.median(seconds[step]), statistics.median(seconds[optimize])
  ratio = optimization_s / pixels / (training_s / (args.batch * pixels))
  print(f"optimization step: {optimization_s:.3f} s, {optimization_s / pixels * 1e6:.2f} us per pixel; training step: "
        f"{training_s:.3f} s, {training_s / args.batch / pixels * 1e6:.2f} us per pixel; ratio {ratio:.2f}")
  return ratio


def watch(args: argparse.Namespace) -> None:
  """Prints the loss of the rounded latents before the first step and at every check."""
  from benchmarks.codec_latency import smooth_noise
  from benchmarks.cross_platform import filled_codec
  image, codec = smooth_noise(args.crop, args.crop), filled_codec(args.config)
  optimizer = codec.with_options(refine=args.watch, lmbda=0.01).optimizer
  quality = codec.choose_quality(None)
  latents = codec.latents(image, quality)
  print(f"{args.config}, weights by formula, {args.crop}x{args.crop}; peak memory so far {peak_memory():.2f} GB")

  def progress(done: float, loss: float):
    print(f"step {round(done * args.watch)}: loss {loss:.4f}, {time.perf_counter() - start:.1f} s", flush=True)

  start = time.perf_counter()
  refine((latents.y, latents.z), optimizer.loss_of_latents(image, quality), jax.random.key(0), optimizer.schedule,
         progress, optimizer.gradient_of_latents(image, quality))
  print(f"peak memory of the process {peak_memory():.2f} GB")


def peak_memory() -> float:
  """Returns the peak memory of this process in GB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(argv=None) -> None:
  args = parse(argv)
  compilation_cache.enable()
  if args.cost:
    cost(args)
  elif args.watch:
    watch(args)
  else:
    table(args)


if __name__ == "__main__":
  main()
