"""The weights and images of the recorded arrays of CompressAI's MLIC models, by formula (tests/fixtures/compressai/).

A parameter is filled under its common name, as golden_fill.py fills those of the authors' release. EXTRA has what
the release has no rule for, and is tried first.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from helpers import golden_fill

FIXTURES = Path(__file__).parents[1] / "fixtures" / "compressai"
# (which names and shapes, base, gain, whether the gain is divided by the square root of the fan-in)
EXTRA = [
    (lambda n, s: n.endswith((".theta_x", ".theta_y")), 10000.0, 1000.0, False),
    (lambda n, s: n.endswith(".step_bias"), 0.0, 0.3, False),
    (lambda n, s: n.endswith(".scale_slope"), 8.0, 1.0, False),
    (lambda n, s: len(s) == 1 and n.endswith(".weight"), 1.0, 0.1, False),  # of a LayerNorm
    (lambda n, s: re.search(r"^global_\w+\.\d+\.context\.reprojection\.weight$", n), 0.0, 0.8, True),
    (lambda n, s: re.search(r"^g_[as]\..*\.token_mixer\.2\.weight$", n), 0.0, 0.5, True),
    (lambda n, s: re.search(r"^selective_predictor\.\d+\.predictor\.4\.weight$", n), 0.0, 14.0, True),
    (lambda n, s: re.search(r"^selective_predictor\.\d+\.predictor\.4\.bias$", n), -14.0, 3.0, False)]


def layouts() -> dict:
  """{model: {size: {"constructor", "parameters", "state_dict": [[name, shape, dtype, kind, common name], ...]}}}."""
  return json.loads(gzip.decompress((FIXTURES / "layouts.json.gz").read_bytes()))


def fill(entries: Iterable[list]) -> dict[str, np.ndarray]:
  """{name: values} of the parameters of a state_dict of `layouts`."""
  return {name: fill_one(common, shape) for name, shape, _, kind, common in entries if kind == "parameter"}


def fill_one(common: str, shape: list[int]) -> np.ndarray:
  """The values of one parameter, by its common name."""
  for applies, base, gain, per_fan_in in EXTRA:
    if applies(common, shape):
      gain = gain / float(np.sqrt(np.prod(shape[1:]))) if per_fan_in else gain
      return np.asarray(np.float32(base) + np.float32(gain) * normal(common, shape), np.float32)
  return golden_fill.fill_one(common, shape)


def image(seed: int, height: int, width: int) -> np.ndarray:
  """(1, height, width, 3) float32: blocks of 8x8 with grain."""
  coarse = normal(f"x.coarse.{seed}", (1, 3, height // 8, width // 8)).repeat(8, axis=2).repeat(8, axis=3)
  fine = normal(f"x.fine.{seed}", (1, 3, height, width))
  x = np.clip(np.float32(0.5) + np.float32(0.1) * coarse + np.float32(0.02) * fine, 0, 1).astype(np.float32)
  return np.moveaxis(x, 1, -1)


def normal(name: str, shape: Iterable[int]) -> np.ndarray:
  """Standard normals, of a generator that the name seeds."""
  drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
  return np.asarray(drawn, np.float32)
