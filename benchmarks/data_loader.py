"""How many crops a second the training data reader delivers on this machine, without any training beside it.

    python benchmarks/data_loader.py PHOTOGRAPHS [--crop 256] [--batch 8] [--seconds 5] [--repeats 5] [--threads 1 2]
                              [--workers 1 2] [--cache 4]

PHOTOGRAPHS is what --config.data_dir may be, tfds:NAME included. Each row is a way to read: threads of one process, or
worker processes, with nothing cached, and threads that find all decoded photographs in memory. Prints the median of
`repeats` stretches of `seconds`, after the first batches, and asserts nothing. Run it with nothing beside it.
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
  parser = argparse.ArgumentParser(description="Crops a second of the training data reader.")
  parser.add_argument("data", help="folder, tfds:NAME, or several with weights")
  parser.add_argument("--tfds-dir", default="")
  parser.add_argument("--crop", type=int, default=256, help="side of the crops, pixels")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--downscale-probability", type=float, default=0.5)
  parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--threads", type=int, nargs="*", default=(1, 2))
  parser.add_argument("--workers", type=int, nargs="*", default=(1, 2))
  parser.add_argument("--cache", type=float, default=4.0, help="gigabytes of the rows with a cache; 0: no such rows")
  return parser.parse_args()


def measure(args: argparse.Namespace, cache_gigabytes: float = 0.0, **reading) -> list[float]:
  """Crops a second, `repeats` times."""
  mixture = loader.Mixture(open_sources(args.data, args.tfds_dir), ((0, args.crop),), int(cache_gigabytes * 1e9))
  reader = loader.training_batches(mixture, seed=0, batch_size=args.batch, sizes=((0, args.crop),), flip=True,
                                  downscale_probability=args.downscale_probability, downscale="all", **reading)
  # What is read ahead at the start, and by the cache one epoch: every photograph once.
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
