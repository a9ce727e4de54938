"""Tests of CDF tables: valid integers, close to the densities, and equal to those of CompressAI up to its rounding."""
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from mlic_jax.coding.cdf_tables import (
  PRECISION,
  REACH_MAX,
  factorized_table,
  gaussian_table,
  quantize_pmf,
  row_scales,
)
from mlic_jax.model.likelihoods import FactorizedPrior, scale_index, scale_table

TOTAL = 2**PRECISION


def rows_of(table):
  """Checks the format of a table for range coding, and returns the counts of the cells of each row."""
  rows = np.split(table.lookup, np.flatnonzero(table.lookup == TOTAL) + 1)
  assert rows.pop().size == 0
  for row in rows:
    assert row[0] == PRECISION and row[1] == 0 and row[-1] == TOTAL
  counts = [np.diff(row[1:]) for row in rows]
  assert len(counts) == len(table.offset) and min(c.min() for c in counts) >= 1
  return counts


@pytest.fixture(scope="module")
def gaussian():
  return gaussian_table(scale_table())


@pytest.fixture(scope="module")
def compressai():
  """Returns the tables of CompressAI 1.2.8 for the same scales: the counts of each row, and the offsets."""
  with np.load(Path(__file__).parents[1] / "fixtures" / "compressai_gaussian_tables.npz") as golden:
    cdfs = np.split(golden["cdf"], np.cumsum(golden["length"])[:-1])
    return [np.diff(cdf) for cdf in cdfs], golden["offset"]


def test_gaussian_rows_begin_and_end_where_compressai_s_do(gaussian, compressai):
  counts, offset = compressai
  np.testing.assert_array_equal(gaussian.offset, offset)
  assert [len(c) for c in rows_of(gaussian)] == [len(c) for c in counts]


def test_gaussian_rows_differ_from_compressai_s_only_in_how_the_sum_is_mended(gaussian, compressai):
  """CompressAI takes counts for empty cells from the smallest cells; we take them where they cost the least."""
  for scale, ours, theirs in zip(scale_table().astype(float), rows_of(gaussian), compressai[0]):
    edges = np.arange(len(ours)) - (len(ours) - 1) / 2
    pmf = np.diff(scipy.stats.norm.cdf(edges, scale=scale))
    our_cost, their_cost = (-(pmf * np.log2(counts[:-1] / TOTAL)).sum() for counts in (ours, theirs))
    entropy = -(pmf * np.log2(np.maximum(pmf, 1e-300))).sum()
    assert our_cost <= their_cost + 1e-6
    assert our_cost <= entropy * 1.003 + 0.0008  # the least count of 1 is what a narrow row pays
    certain = theirs > 60  # cells that its mending does not reach
    np.testing.assert_allclose(ours[:-1][certain[:-1]], theirs[:-1][certain[:-1]], rtol=0.03, atol=2)


def test_a_row_is_within_half_a_level_of_every_scale_that_takes_it():
  scales = np.geomspace(0.11, 250, 5000).astype(np.float32)
  row = row_scales()[np.asarray(scale_index(scales))]
  half = (np.log(256 / 0.11) / 63) / 2
  assert np.abs(np.log(scales / row)).max() <= half + 1e-5
  assert row[0] == pytest.approx(0.11)  # where most elements of an easy image are


def z_params(channels=3, **changes):
  rng = np.random.default_rng(0)
  density = FactorizedPrior(channels)
  sizes = (1, *density.widths, 1)
  params = {"quantiles": np.tile([-9.5, 0.25, 12.0], (channels, 1))}
  for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
    params[f"matrix{i}"] = np.full((channels, fan_out, fan_in), np.log(np.expm1(10**-0.2 / fan_out)))
    params[f"bias{i}"] = rng.uniform(-0.5, 0.5, (channels, fan_out))
    if i < len(density.widths):
      params[f"factor{i}"] = rng.normal(0, 0.3, (channels, fan_out))
  return {name: np.float32(changes.get(name, value)) for name, value in params.items()}


def test_rows_of_z_hold_the_trained_density_around_its_median():
  params = z_params()
  table = factorized_table(params)
  np.testing.assert_array_equal(table.offset, -10)  # ceil(0.25 + 9.5)
  symbols = np.arange(-10, 13)                      # up to ceil(12 - 0.25)
  likelihood = FactorizedPrior(3).apply({"params": params}, np.float32(symbols[:, None] + 0.25), method="likelihood")
  for channel, counts in enumerate(rows_of(table)):
    assert len(counts) == len(symbols) + 1
    np.testing.assert_allclose(counts[:-1] / TOTAL, likelihood[:, channel], atol=2 / TOTAL)
    assert counts[-1] / TOTAL == pytest.approx(1 - likelihood[:, channel].sum(), abs=2 / TOTAL)


def test_rows_of_z_keep_a_sane_length_whatever_the_quantiles():
  params = z_params(quantiles=np.array([[-1e9, 0, 1e9], [5, 0, -5], [0, 0, 0]]))
  assert [len(c) for c in rows_of(factorized_table(params))] == [2 * REACH_MAX + 2, 2, 2]


@pytest.mark.parametrize("name", ["quantiles", "bias2"])
def test_a_diverged_density_has_no_table(name):
  params = z_params()
  params[name] = np.full_like(params[name], np.nan)
  with pytest.raises(ValueError, match="not finite"):
    factorized_table(params)


def test_counts_are_the_cheapest_that_sum_to_the_total():
  """No count moved from one cell to another makes the expected code shorter."""
  rng = np.random.default_rng(0)
  for pmf in (rng.dirichlet(np.full(40, 0.3)), np.r_[1 - 1e-9, np.full(200, 5e-12)], np.full(7, 1 / 7)):
    counts = quantize_pmf(pmf, precision=10)
    assert counts.sum() == 2**10 and counts.min() >= 1
    gain = pmf * np.log2((counts + 1) / counts)
    loss = np.where(counts > 1, pmf * np.log2(counts / np.maximum(counts - 1, 1)), np.inf)
    assert gain.max() <= loss.min() + 1e-12


def test_more_cells_than_counts_are_refused():
  with pytest.raises(ValueError, match="do not fit"):
    quantize_pmf(np.full(9, 1 / 9), precision=3)
