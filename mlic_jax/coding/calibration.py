"""Calibration: a shape and a factor of the scale for each channel of y, fitted to images without training.

Means, scales and symbols stay those of a trained Gaussian model, and so do its images. What changes is the table that
the symbols are coded with: that of a generalized Gaussian whose shape and scale factor are the best of a grid, channel
by channel. Elements are counted by their scale and symbol, and a candidate costs what its rows cost for these counts.
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
FACTORS = np.exp(np.linspace(-0.3, 0.3, 13))   # of the scale with which the standard deviation stays as it is
PARTS = 8           # of a scale level, by which elements are counted
SYMBOLS = 96        # magnitudes that are counted apart; larger ones count as this one


class Fit(NamedTuple):
  """What a calibration found."""
  shapes: np.ndarray    # (M,) index in SHAPES of each channel
  factors: np.ndarray   # (M,) of the scales
  before: list[float]   # bits of y at each rate, with the Gaussian table
  after: list[float]    # with the fitted one


def calibrated_config(config: CodecConfig) -> CodecConfig:
  """The config of a calibrated model. ConfigError unless `config` has a Gaussian."""
  if config.distribution != "gaussian":
    raise ConfigError(f"the model has the distribution {config.distribution!r}; wanted 'gaussian', to be calibrated")
  options = dict(config.options) | dict(shapes=SHAPES, shape_per="channel", scale_factors=True)
  return dataclasses.replace(config, distribution="generalized_gaussian", options=options)


def fit(model: Model, images: Iterable[np.ndarray]) -> Fit:
  """Fits shapes and factors to images (H, W, 3) uint8, at all rates of a model. ConfigError if it is not Gaussian."""
  coder = LatentCoder(model)
  qualities: list[float | None] = [float(q) for q in range(1, model.config.num_rates + 1)] or [None]
  counts = [np.zeros((model.config.M, PARTS * SCALE_LEVELS, SYMBOLS + 1), np.int32) for _ in qualities]
  for image in images:
    for of_rate, quality in zip(counts, qualities):
      count_elements(of_rate, coder, image, quality)
  return choose(model.config, counts)


def choose(config: CodecConfig, counts: Sequence[np.ndarray]) -> Fit:
  """Chooses shapes and factors for the elements that were counted at each rate.

  All rates have one shape and one factor for a channel: those that save the most percent on average over the rates."""
  distribution = make_distribution(calibrated_config(config))
  gaussian = _costs(distribution_table(make_distribution(config), row_scales()))
  before = [_cost(of_rate, gaussian, 0.0) for of_rate in counts]   # (M,) bits of each channel, at each rate
  candidates = [(shape, factor) for shape in range(len(SHAPES)) for factor in FACTORS * _same_deviation(shape)]
  tables = [_costs(distribution_table(distribution, row_scales(), shape)) for shape in range(len(SHAPES))]
  after = np.array([[_cost(of_rate, tables[shape], np.log(factor)) for shape, factor in candidates]
                    for of_rate in counts])                        # (rates, candidates, M)
  totals = np.array([each.sum() for each in before])
  best = (after / totals[:, None, None]).sum(0).argmin(0)
  chosen = after[:, best, np.arange(len(best))].sum(1)
  shapes, factors = (np.array(each)[best] for each in zip(*candidates))
  return Fit(shapes, factors, totals.tolist(), chosen.tolist())


def calibrated(model: Model, found: Fit) -> tuple[CodecConfig, dict[str, Any]]:
  """The config and the variables of a model with what was found."""
  by_slice = lambda values: values.reshape(model.config.num_slices, -1).astype(np.float32)
  params = dict(model.variables["params"])
  steps = dict(params["slices"]["steps"], distribution_parameters={
      "shape": by_slice(found.shapes), "log_factor": by_slice(np.log(found.factors))})
  return calibrated_config(model.config), {"params": params | {"slices": dict(params["slices"], steps=steps)}}


def count_elements(counts: np.ndarray, coder: LatentCoder, image: np.ndarray, quality: float | None) -> None:
  """Adds the elements of y of an image to `counts` (M, PARTS * SCALE_LEVELS, SYMBOLS + 1): by channel, scale and
  magnitude of the symbol."""
  _, passes, _ = coder.run_encoder(coder.analyze(image, quality), EncodeOptions())
  cs = coder.config.slice_channels
  for index, (symbols, coded, (scale, *_)) in enumerate(passes):
    part = np.ceil(PARTS * np.log(np.asarray(scale, np.float64) / row_scales()[0]) / SCALE_STEP - 1e-4)
    part = np.clip(part, 0, counts.shape[1] - 1).astype(int)
    magnitude = np.minimum(np.abs(np.asarray(symbols)), SYMBOLS)
    channel = index // 2 * cs + np.broadcast_to(np.arange(cs), part.shape)
    place = (channel, part, magnitude)
    np.add.at(counts, tuple(each.ravel() if coded is None else each[coded] for each in place), 1)


def _costs(table: CDFTable) -> np.ndarray:
  """(rows, SYMBOLS + 1) bits of each magnitude in each row, half a bit for the sign of an escape's code among them."""
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
  """(M,) bits of the counted elements with scales times exp(log_factor)."""
  parts = np.arange(PARTS * SCALE_LEVELS)
  levels = np.clip(np.ceil((parts - 0.5 * (parts > 0)) / PARTS + log_factor / SCALE_STEP), 0, SCALE_LEVELS - 1)
  levels[0] = 0   # where a scale is bounded below, the factor does not move it
  return np.einsum("cps,ps->c", counts, costs[levels.astype(int)], optimize=True)


def _same_deviation(shape: int) -> float:
  """The factor with which a generalized Gaussian of SHAPES has the standard deviation of the Gaussian."""
  beta = SHAPES[shape]
  unit = generalized_gaussian.units(SHAPES)[shape]   # alpha of the scale 1
  deviation = unit * np.sqrt(scipy.special.gamma(3 / beta) / scipy.special.gamma(1 / beta))
  return float(1 / deviation)
