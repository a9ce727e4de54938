"""Measures the two range coders: import time, and symbols per second.

    python benchmarks/range_coders.py [--symbols 490000] [--repeats 7]

A 768x512 image has 490,000 symbols with full-size models. Each coder runs in a process of its own. Times are CPU times
(user and system), on which other processes have little effect, and the minimum over the repeats.
"""
import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from mlic_jax.coding.cdf_tables import gaussian_table
from mlic_jax.coding.rangecoder import PACKAGES, Decoder, Encoder, _module

SCALES = np.array([0.11, 0.5, 2.0, 9.0])


def seconds(run) -> tuple[float, object]:
  start = time.process_time()
  result = run()
  return time.process_time() - start, result


def measure(coder: str, count: int, repeats: int) -> None:
  """Measures a coder and prints one line."""
  ready, _ = seconds(lambda: _module(coder))
  table, rng = gaussian_table(SCALES), np.random.default_rng(0)
  rows = rng.integers(0, len(SCALES), count).astype(np.int32)
  symbols = np.rint(rng.normal(0, SCALES[rows])).astype(np.int32)

  def encode():
    encoder = Encoder(table, coder)
    encoder.encode(symbols, rows)
    return encoder.finish()

  encoding, streams = zip(*(seconds(encode) for _ in range(repeats)))
  decoding, decoded = zip(*(seconds(lambda: Decoder(table, streams[0], coder).decode(rows)) for _ in range(repeats)))
  np.testing.assert_array_equal(decoded[0], symbols)
  print(f"{coder:<6} ready after {ready:.2f} s; {count} symbols: encoding {1000 * min(encoding):.1f} ms "
        f"({count / min(encoding) / 1e6:.0f} M/s), decoding {1000 * min(decoding):.1f} ms "
        f"({count / min(decoding) / 1e6:.0f} M/s)", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--symbols", type=int, default=490_000, help="Number of symbols. Default: %(default)s.")
  parser.add_argument("--repeats", type=int, default=7, help="Number of runs. Default: %(default)s.")
  parser.add_argument("--coder", choices=PACKAGES, help="Measure only this coder, in this process. Default: both.")
  args = parser.parse_args()
  if args.coder:
    measure(args.coder, args.symbols, args.repeats)
    return
  for coder in PACKAGES:
    subprocess.run([sys.executable, *sys.argv, "--coder", coder], check=True)


if __name__ == "__main__":
  main()
