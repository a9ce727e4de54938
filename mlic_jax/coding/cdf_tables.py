"""Integer CDF tables of the trained densities, built once, when a checkpoint is written.

A decoder never recomputes a table. Two machines may disagree in the last bits of exp and erfc, and a cell that differs
by one count garbles every later symbol. The integers are therefore part of the checkpoint.

    rows of the table                  symbols of a row
    0 .. R - 1      y, one per scale   -reach .. reach, then the escape: one cell for all other symbols
    R .. R - 1 + N  z, one per channel -lower .. upper, then the escape

R is 64 times the number of shapes of the distribution of y (model/distributions), shape after shape; 0 if the
distribution has a row for each element instead of a table.
"""
import heapq
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mlic_jax.config import CodecConfig
from mlic_jax.model.distributions import Distribution, gaussian, make_distribution
from mlic_jax.model.likelihoods import FactorizedPrior
from mlic_jax.model.scale_table import SCALE_LEVELS, scale_table

PRECISION = 16        # bits of a probability, the maximum of the range coder
TAIL_MASS = 1e-9      # probability of the escape of a row of y, both tails together; as in CompressAI
REACH_MAX = 2048      # maximum number of cells on either side of a mean or median
CELLS_MAX = 2 * REACH_MAX + 4   # maximum number of integers of a row of `lookup`: precision, 0, cells, escape


class CDFTable(NamedTuple):
  """Quantized CDFs. Symbol s of row r is cell s - offset[r], or the last cell, the escape, if there is no such cell."""
  lookup: np.ndarray  # (L,) int32, concatenated rows: PRECISION, 0, cumulative counts, 2**PRECISION
  offset: np.ndarray  # (rows,) int32, the smallest symbol of each row


class TableError(ValueError):
  """The CDF table is not valid; the message is one line."""


def check_table(table: CDFTable) -> None:
  """Raises TableError unless the counts of every row rise from 0 to 2**PRECISION and every row has an offset.

  With an invalid table a range coder would read beyond its memory."""
  lookup = table.lookup
  ends = np.flatnonzero(lookup == 2**PRECISION) + 1
  begins = np.concatenate([[0], ends])
  first, falls = begins[:-1], np.flatnonzero(np.diff(lookup) <= 0)
  if (begins[-1] != len(lookup) or (lookup[first] != PRECISION).any() or lookup[first + 1].any()
      or not np.array_equal(falls, np.sort(np.concatenate([first, first[1:] - 1])))):
    raise TableError(f"the CDF table is damaged: its counts do not rise from 0 to {2**PRECISION} in every row")
  if len(ends) != len(table.offset):
    raise TableError(f"the CDF table is damaged: it has {len(ends)} rows and {len(table.offset)} offsets")


def build_table(config: CodecConfig, variables: Mapping[str, Any]) -> CDFTable:
  """Builds the table of a trained model: 64 rows for each shape of the distribution of y, then a row for each channel
  of z. ValueError if the density of z is not finite."""
  distribution = make_distribution(config)
  tables = [distribution_table(distribution, row_scales(), shape) for shape in range(distribution.num_shapes)]
  tables.append(factorized_table(variables["params"]["z_prior"]))
  return CDFTable(*(np.concatenate(parts) for parts in zip(*tables)))


def row_scales() -> np.ndarray:
  """Returns the scale of the Gaussian of each row, (64,): the geometric mean of the ends of its range of scales.

  A row codes the scales above the previous level and up to its own (likelihoods.scale_index); the first row codes
  SCALE_MIN alone. The authors' tables have the Gaussian of the upper end. That costs a small model 2 % of the bytes at
  low rates, and the mean a quarter of it: the loss grows with the square of the log ratio of the scales.
  """
  levels = scale_table().astype(np.float64)
  return np.concatenate([levels[:1], np.sqrt(levels[:-1] * levels[1:])])


def z_rows(config: CodecConfig) -> np.ndarray:
  """Returns the row of each channel of z, (N,) int32."""
  first = SCALE_LEVELS * make_distribution(config).num_shapes
  return np.arange(first, first + config.N, dtype=np.int32)


def gaussian_table(scales: np.ndarray) -> CDFTable:
  """Builds one row per scale, for y - mean under a zero-mean Gaussian convolved with the unit uniform."""
  return distribution_table(gaussian.Distribution(CodecConfig()), scales)


def distribution_table(distribution: Distribution, scales: np.ndarray, shape: int = 0) -> CDFTable:
  """Builds one row per scale, for y - mean under a zero-mean distribution convolved with the unit uniform.

  `shape` is the index of its shape."""
  rows, offset = [], []
  for scale in np.asarray(scales, np.float64):
    cdf = lambda x, scale=scale: distribution.cdf(x, scale, shape)
    reach = _reach(cdf)
    distance = np.abs(np.arange(-reach, reach + 1))  # evaluates both terms in the left tail, where nothing cancels
    rows.append(_row(cdf(0.5 - distance) - cdf(-0.5 - distance), escape=2 * float(cdf(np.array(-0.5 - reach)))))
    offset.append(-reach)
  return CDFTable(np.concatenate(rows), np.array(offset, np.int32))


def _reach(cdf: Callable[[np.ndarray], np.ndarray]) -> int:
  """Returns the first integer r with at most half of TAIL_MASS below -r, or REACH_MAX."""
  return int(np.searchsorted(-cdf(-np.arange(REACH_MAX, dtype=np.float64)), -TAIL_MASS / 2))


def factorized_table(z_prior: Mapping[str, Any]) -> CDFTable:
  """Builds one row per channel, for z - median under the factorized density; `quantiles` limit the cells of a row.

  The module that training uses evaluates the density, in float32. Its error, about 1e-6, is a tenth of a count.
  ValueError if the density is not finite.
  """
  quantiles = np.asarray(z_prior["quantiles"], np.float64)  # (N, 3): lower tail, median, upper tail
  if not np.isfinite(quantiles).all():
    raise ValueError("the quantiles of z are not finite, so there is no CDF table; the training has diverged")
  lower, upper = np.clip(np.ceil(np.diff(quantiles, axis=1)), 0, REACH_MAX).astype(int).T
  symbols = np.arange(-lower.max(), upper.max() + 1)
  biases = [np.shape(z_prior[f"bias{i}"]) for i in range(sum(name.startswith("bias") for name in z_prior))]
  density = FactorizedPrior(len(quantiles), tuple(width for _, width in biases[:-1]))
  v = (symbols[:, None] + quantiles[:, 1]).astype(np.float32)
  likelihood = np.asarray(density.apply({"params": jax.device_get(dict(z_prior))}, v, method="likelihood"), np.float64)
  if not np.isfinite(likelihood).all():
    raise ValueError("the density of z is not finite, so there is no CDF table; the training has diverged")
  rows = []
  for channel, (low, up) in enumerate(zip(lower, upper)):
    pmf = likelihood[(symbols >= -low) & (symbols <= up), channel]
    rows.append(_row(pmf, escape=max(1 - pmf.sum(), 0.0)))
  return CDFTable(np.concatenate(rows), -lower.astype(np.int32))


def _row(pmf: np.ndarray, escape: float) -> np.ndarray:
  """Returns one row of `lookup`: the precision, then the cumulative counts of the cells and of the escape."""
  counts = quantize_pmf(np.append(pmf, escape))
  return np.concatenate([[PRECISION, 0], np.cumsum(counts)]).astype(np.int32)


def quantize_pmf(pmf: np.ndarray, precision: int = PRECISION) -> np.ndarray:
  """Quantizes probabilities (cells,) to counts (cells,) int, at least 1 each, that sum to 2**precision.

  Rounded counts miss the sum by a few. A greedy correction then changes one count at a time, where it decreases the
  expected number of bits most or increases it least.
  """
  total = 2**precision
  pmf = pmf / pmf.sum()
  if len(pmf) > total:
    raise ValueError(f"{len(pmf)} cells do not fit into {total} counts")
  # Numbers of Python, because single elements of arrays take ten times as long.
  counts, masses = np.maximum(np.rint(pmf * total), 1).astype(int).tolist(), pmf.tolist()
  missing = total - sum(counts)
  step = 1 if missing > 0 else -1

  def cost(cell):  # change of the expected code length, in nats, by one step
    after = counts[cell] + step
    return masses[cell] * math.log(counts[cell] / after) if after >= 1 else math.inf

  heap = [(cost(cell), cell) for cell in range(len(counts))]
  heapq.heapify(heap)
  for _ in range(abs(missing)):
    cell = heap[0][1]
    counts[cell] += step
    heapq.heapreplace(heap, (cost(cell), cell))
  return np.array(counts)
