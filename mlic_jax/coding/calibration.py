"""Calibration: fits a shape and a scale factor of the distribution of each channel of y to images, without training.

Means, scales, symbols and decoded images of a trained Gaussian model do not change. Only the CDF table changes: it is
that of a generalized Gaussian, with the best shape and scale factor of a grid for each channel. Elements are counted by
scale and symbol, and the cost of a candidate is the cost of these counts with its rows.
"""
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from mlic_jax.coding.cdf_tables import PRECISION, CDFTable, distribution_table, row_scales
from mlic_jax.coding.checkpoint_io import Model
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.latent_coder import LatentCoder
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.model.distributions import generalized_gaussian, make_distribution
from mlic_jax.model.scale_table import SCALE_LEVELS, SCALE_STEP

SHAPES = (0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0)
FACTORS = np.exp(np.linspace(-0.3, 0.3, 13))   # relative to the scale that preserves the standard deviation
PARTS = 8           # bins per scale level for the counts of elements
SYMBOLS = 96        # the largest magnitude with a bin of its own; larger ones count as this one


class Fit(NamedTuple):
  """The result of a calibration."""
  shapes: np.ndarray    # (M,) index in SHAPES for each channel
  factors: np.ndarray   # (M,) scale factor for each channel
  before: list[float]   # bits of y at each rate point with the Gaussian table
  after: list[float]    # bits of y at each rate point with the fitted table


def calibrated_config(config: CodecConfig) -> CodecConfig:
  """Returns the config of the calibrated model. ConfigError unless `config` has a Gaussian."""
  if config.distribution != "gaussian":
    raise ConfigError(f"the model has the distribution {config.distribution!r}; wanted 'gaussian' for calibration")
  options = dict(config.options) | dict(shapes=SHAPES, shape_per="channel", scale_factors=True)
  return dataclasses.replace(config, distribution="generalized_gaussian", options=options)


def fit(model: Model, images: Iterable[np.ndarray]) -> Fit:
  """Fits shapes and factors to images (H, W, 3) uint8 at all rate points. ConfigError if the model is not Gaussian."""
  coder = LatentCoder(model)
  qualities: list[float | None] = [float(q) for q in range(1, model.config.num_rates + 1)] or [None]
  counts = [np.zeros((model.config.M, PARTS * SCALE_LEVELS, SYMBOLS + 1), np.int32) for _ in qualities]
  for image in images:
    for rate_counts, quality in zip(counts, qualities):
      count_elements(rate_counts, coder, image, quality)
  return choose(model.config, counts)


def choose(config: CodecConfig, counts: Sequence[np.ndarray]) -> Fit:
  """Chooses shapes and factors for the counts of elements at each rate point.

  All rate points share the shape and factor of a channel: those with the largest mean saving in percent."""
  distribution = make_distribution(calibrated_config(config))
  gaussian = _costs(distribution_table(make_distribution(config), row_scales()))
  before = [_cost(each, gaussian, 0.0) for each in counts]         # (M,) bits of each channel, at each rate point
  candidates = [(shape, factor) for shape in range(len(SHAPES)) for factor in FACTORS * _same_deviation(shape)]
  tables = [_costs(distribution_table(distribution, row_scales(), shape)) for shape in range(len(SHAPES))]
  after = np.array([[_cost(each, tables[shape], np.log(factor)) for shape, factor in candidates]
                    for each in counts])                           # (rates, candidates, M)
  totals = np.array([each.sum() for each in before])
  best = (after / totals[:, None, None]).sum(0).argmin(0)
  chosen = after[:, best, np.arange(len(best))].sum(1)
  shapes, factors = (np.array(each)[best] for each in zip(*candidates))
  return Fit(shapes, factors, totals.tolist(), chosen.tolist())


def calibrated(model: Model, found: Fit) -> tuple[CodecConfig, dict[str, Any]]:
  """Returns config and variables of the calibrated model."""
  by_slice = lambda values: values.reshape(model.config.num_slices, -1).astype(np.float32)
  params = dict(model.variables["params"])
  steps = dict(params["slices"]["steps"], distribution_parameters={
      "shape": by_slice(found.shapes), "log_factor": by_slice(np.log(found.factors))})
  return calibrated_config(model.config), {"params": params | {"slices": dict(params["slices"], steps=steps)}}


def count_elements(counts: np.ndarray, coder: LatentCoder, image: np.ndarray, quality: float | None) -> None:
  """Adds the elements of y of an image to `counts` (M, PARTS * SCALE_LEVELS, SYMBOLS + 1).

  The axes are channel, bin of the scale and magnitude of the symbol."""
  _, passes, _ = coder.run_encoder(coder.analyze(image, quality), EncodeOptions())
  cs = coder.config.slice_channels
  for number, (symbols, coded, (scale, *_)) in enumerate(passes):
    part = np.ceil(PARTS * np.log(np.asarray(scale, np.float64) / row_scales()[0]) / SCALE_STEP - 1e-4)
    part = np.clip(part, 0, counts.shape[1] - 1).astype(int)
    magnitude = np.minimum(np.abs(np.asarray(symbols)), SYMBOLS)
    channel = number // 2 * cs + np.broadcast_to(np.arange(cs), part.shape)
    index = (channel, part, magnitude)
    np.add.at(counts, tuple(each.ravel() if coded is None else each[coded] for each in index), 1)


def _costs(table: CDFTable) -> np.ndarray:
  """Returns the bits of each magnitude in each row, (rows, SYMBOLS + 1), with the code of escapes."""
  rows = np.split(table.lookup, np.flatnonzero(table.lookup == 2**PRECISION) + 1)[:-1]
  costs = np.empty((len(rows), SYMBOLS + 1))
  for cost, row, offset in zip(costs, rows, table.offset):
    bits = PRECISION - np.log2(np.diff(row[1:]))
    inside = min(SYMBOLS, -int(offset))
    cost[:inside + 1] = bits[-offset:-offset + inside + 1]
    distance = np.arange(inside + 1, SYMBOLS + 1) - inside
    cost[inside + 1:] = bits[-1] + 2 * np.floor(np.log2(distance)) + 2
  return costs


def _cost(counts: np.ndarray, costs: np.ndarray, log_factor: float) -> np.ndarray:
  """Returns the bits of the counted elements, (M,), with scales times exp(log_factor)."""
  parts = np.arange(PARTS * SCALE_LEVELS)
  levels = np.clip(np.ceil((parts - 0.5 * (parts > 0)) / PARTS + log_factor / SCALE_STEP), 0, SCALE_LEVELS - 1)
  levels[0] = 0   # the factor does not change scales at their lower bound
  return np.einsum("cps,ps->c", counts, costs[levels.astype(int)], optimize=True)


def _same_deviation(shape: int) -> float:
  """Returns the factor that gives a generalized Gaussian of SHAPES the standard deviation of the Gaussian."""
  beta = SHAPES[shape]
  unit = generalized_gaussian.units(SHAPES)[shape]   # alpha of the scale 1
  deviation = unit * np.sqrt(scipy.special.gamma(3 / beta) / scipy.special.gamma(1 / beta))
  return float(1 / deviation)
