"""Calibration: fits a shape and a level shift of the distribution of each channel of y to images, without training.

Means, scales, symbols and decoded images of a trained Gaussian model do not change. Only the CDF table changes: it is
that of a generalized Gaussian, with the best shape and the best shift of the scales, in levels, for each channel.
Elements are counted by symbol and by level, as in a portable file, and the cost of a candidate is the cost of these
counts with its rows.
"""
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from mlic_jax.coding import jit_functions, portable_cdf, skip_coding
from mlic_jax.coding.cdf_tables import PRECISION, CDFTable, distribution_table, row_scales
from mlic_jax.coding.checkpoint_io import Model
from mlic_jax.coding.latent_coder import LatentCoder
from mlic_jax.coding.skip_coding import shifted_levels
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.model.distributions import generalized_gaussian, make_distribution
from mlic_jax.model.scale_table import SCALE_LEVELS, SCALE_STEP

SHAPES = (0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0)
SHIFTS = range(-3, 4)   # in levels, relative to the shift that preserves the standard deviation
SYMBOLS = 96        # the largest magnitude with a bin of its own; larger ones count as this one


class Fit(NamedTuple):
  """The result of a calibration."""
  shapes: np.ndarray    # (M,) index in SHAPES for each channel
  shifts: np.ndarray    # (M,) level shift for each channel
  before: list[float]   # bits of y at each rate point with the Gaussian table
  after: list[float]    # bits of y at each rate point with the fitted table


def calibrated_config(config: CodecConfig) -> CodecConfig:
  """Returns the config of the calibrated model. ConfigError unless `config` has a Gaussian."""
  if config.distribution != "gaussian":
    raise ConfigError(f"the model has the distribution {config.distribution!r}; wanted 'gaussian' for calibration")
  options = dict(config.options) | dict(shapes=SHAPES, shape_per="channel", level_shifts=True)
  return dataclasses.replace(config, distribution="generalized_gaussian", options=options)


def fit(model: Model, images: Iterable[np.ndarray]) -> Fit:
  """Fits shapes and shifts to images (H, W, 3) uint8 at all rate points. ConfigError if the model is not Gaussian."""
  coder = LatentCoder(model)
  qualities: list[float | None] = [float(q) for q in range(1, model.config.num_rates + 1)] or [None]
  counts = [np.zeros((model.config.M, SCALE_LEVELS, SYMBOLS + 1), np.int32) for _ in qualities]
  for image in images:
    for rate_counts, quality in zip(counts, qualities):
      count_elements(rate_counts, coder, image, quality)
  return choose(model.config, counts)


def choose(config: CodecConfig, counts: Sequence[np.ndarray]) -> Fit:
  """Chooses shapes and shifts for the counts of elements at each rate point.

  All rate points share the shape and shift of a channel: those with the largest mean saving in percent."""
  distribution = make_distribution(calibrated_config(config))
  gaussian = _costs(distribution_table(make_distribution(config), row_scales()))
  before = [_cost(each, gaussian, 0) for each in counts]           # (M,) bits of each channel, at each rate point
  candidates = [(shape, shift + _same_deviation(shape)) for shape in range(len(SHAPES)) for shift in SHIFTS]
  tables = [_costs(distribution_table(distribution, row_scales(), shape)) for shape in range(len(SHAPES))]
  after = np.array([[_cost(each, tables[shape], shift) for shape, shift in candidates]
                    for each in counts])                           # (rates, candidates, M)
  totals = np.array([each.sum() for each in before])
  best = (after / totals[:, None, None]).sum(0).argmin(0)
  chosen = after[:, best, np.arange(len(best))].sum(1)
  shapes, shifts = (np.array(each)[best] for each in zip(*candidates))
  return Fit(shapes, shifts, totals.tolist(), chosen.tolist())


def calibrated(model: Model, found: Fit) -> tuple[CodecConfig, dict[str, Any]]:
  """Returns config and variables of the calibrated model."""
  by_slice = lambda values: values.reshape(model.config.num_slices, -1).astype(np.float32)
  params = dict(model.variables["params"])
  steps = dict(params["slices"]["steps"], distribution_parameters={
      "shape": by_slice(found.shapes), "level_shift": by_slice(found.shifts)})
  return calibrated_config(model.config), {"params": params | {"slices": dict(params["slices"], steps=steps)}}


def count_elements(counts: np.ndarray, coder: LatentCoder, image: np.ndarray, quality: float | None) -> None:
  """Adds the elements of y of an image to `counts` (M, SCALE_LEVELS, SYMBOLS + 1).

  The axes are channel, level of the scale and magnitude of the symbol. Levels are those of a portable file, whose grids
  move some elements to the next level."""
  latents, origin = coder.analyze(image, quality), portable_cdf.origin_of_this_machine(coder.config)
  cs = coder.config.slice_channels

  def count_pass(k, anchors, positions, prior):
    coding = skip_coding.choose(coder.distribution, positions, prior, origin, 0, coder.has_map)
    symbols = skip_coding.mask_skipped(np.asarray(jit_functions.symbols(latents.y, k, prior.mean, anchors)), coding)
    channel = k * cs + np.broadcast_to(np.arange(cs), symbols.shape)
    index = (channel, coding.rows, np.minimum(np.abs(symbols), SYMBOLS))   # a Gaussian has a row for each level
    np.add.at(counts, tuple(each.ravel() if coding.coded is None else each[coding.coded] for each in index), 1)
    return skip_coding.mark_skipped(symbols, coding, coder.config)

  coder.run_passes(coder.symbols_of_z(latents), count_pass)


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


def _cost(counts: np.ndarray, costs: np.ndarray, shift: int) -> np.ndarray:
  """Returns the bits of the counted elements, (M,), with their levels shifted."""
  return np.einsum("cls,ls->c", counts, costs[shifted_levels(np.arange(SCALE_LEVELS), np.array(shift))], optimize=True)


def _same_deviation(shape: int) -> int:
  """Returns the level shift, rounded, that gives a generalized Gaussian the standard deviation of the Gaussian."""
  beta = SHAPES[shape]
  unit = generalized_gaussian.units(SHAPES)[shape]   # alpha of the scale 1
  deviation = unit * np.sqrt(scipy.special.gamma(3 / beta) / scipy.special.gamma(1 / beta))
  return round(-np.log(deviation) / SCALE_STEP)
