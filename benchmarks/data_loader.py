"""Measures the training data loader in crops per second, without a training.

    python benchmarks/data_loader.py IMAGES [--crop 256] [--batch 8] [--seconds 5] [--repeats 5] [--threads 1 2]
                              [--workers 1 2] [--cache 4]

IMAGES is a value of --config.data_dir, such as a folder or tfds:NAME. Each row is a way to read: threads of one process
or worker processes without a cache, and threads with all decoded images in memory. It prints the median over `repeats`
measurements of `seconds`, after the first batches. Run it without other load on the machine.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.data import loader
from mlic_jax.data.sources import open_sources


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("data", metavar="IMAGES", help="Folder, tfds:NAME, or a weighted mixture of them.")
  parser.add_argument("--tfds-dir", default="", help="Folder of TFDS datasets. Default: that of TFDS.")
  parser.add_argument("--crop", type=int, default=256, help="Side of the crops in pixels. Default: %(default)s.")
  parser.add_argument("--batch", type=int, default=8, help="Crops per batch. Default: %(default)s.")
  parser.add_argument("--downscale-probability", type=float, default=0.5,
                      help="Probability that an image is downscaled. Default: %(default)s.")
  parser.add_argument("--seconds", type=float, default=5.0, help="Seconds per measurement. Default: %(default)s.")
  parser.add_argument("--repeats", type=int, default=5, help="Number of measurements. Default: %(default)s.")
  parser.add_argument("--threads", type=int, nargs="*", default=(1, 2), help="Numbers of threads. Default: 1 2.")
  parser.add_argument("--workers", type=int, nargs="*", default=(1, 2), help="Numbers of processes. Default: 1 2.")
  parser.add_argument("--cache", type=float, default=4.0,
                      help="Gigabytes of cache in the rows with a cache; 0 omits them. Default: %(default)s.")
  return parser.parse_args()


def measure(args: argparse.Namespace, cache_gigabytes: float = 0.0, **reading) -> list[float]:
  """Returns crops per second of `repeats` measurements."""
  mixture = loader.Mixture(open_sources(args.data, args.tfds_dir), ((0, args.crop),), int(cache_gigabytes * 1e9))
  reader = loader.training_batches(mixture, seed=0, batch_size=args.batch, sizes=((0, args.crop),), flip=True,
                                  downscale_probability=args.downscale_probability, downscale="all", **reading)
  # Skips the batches that are prefetched at the start; with a cache, one epoch, which fills the cache.
  for _ in range(20 if not cache_gigabytes else 1 + len(mixture) // args.batch):
    next(reader)
  rates = []
  for _ in range(args.repeats):
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < args.seconds:
      count += len(next(reader))
    rates.append(count / elapsed)
  return rates


def main() -> None:
  args = parse()
  rows = [(f"{n} thread(s)", dict(threads=n)) for n in args.threads]
  rows += [(f"{n} worker process(es)", dict(workers=n)) for n in args.workers]
  if args.cache:
    rows += [(f"{n} thread(s), cached", dict(threads=n, cache_gigabytes=args.cache)) for n in args.threads]
  print(f"crops of {args.crop}x{args.crop} from {args.data}, in batches of {args.batch}")
  for name, reading in rows:
    rates = measure(args, **reading)
    print(f"{name}: {statistics.median(rates):.0f} crops/s ({min(rates):.0f} to {max(rates):.0f})", flush=True)


if __name__ == "__main__":
  main()
