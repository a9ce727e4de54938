"""Skip coding: an element with a small predicted scale is not coded and takes its predicted mean.

The criterion is the CDF row, an integer that encoder and decoder compute anyway and that machines agree on in portable
files. The elements of the first rows are skipped. The file stores only the number of these rows. DCVC and JPEG AI skip
by the scale as well; MLICv2's guided selective compression predicts a map instead (model/selection_map.py).

Skip coding is not a wide zero bin that saves the bits of zeros: a skipped element may have a symbol other than zero.
That costs distortion, and saves the many bits of an unexpected symbol.

Where a model has a selection map, machines agree on the map as on rows, through grids of its own (portable_cdf.py).
"""
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from mlic_jax.coding import bitstream, jit_functions, portable_cdf
from mlic_jax.coding.bitstream import Bitstream, Origin
from mlic_jax.coding.cdf_tables import CDFTable
from mlic_jax.coding.portable_cdf import Grids
from mlic_jax.coding.rangecoder import Decoder, Encoder
from mlic_jax.config import CodecConfig
from mlic_jax.model import selection_map
from mlic_jax.model.distributions import UNSHIFTED_LEVELS, Distribution
from mlic_jax.model.scale_table import SCALE_LEVELS, scale_table
from mlic_jax.model.slices import Prior

ELEMENTS_MAX = 2**14  # element tables in memory at a time, for distributions with a row per element


class SkipError(ValueError):
  """The threshold of skip coding is invalid; the message is one line."""


class PassCoding(NamedTuple):
  """The rows, mask and grids that a pass is coded with."""
  rows: np.ndarray           # (1, h, w/2, Cs) int32, CDF rows
  coded: np.ndarray | None   # (1, h, w/2, Cs) bool, False for skipped elements; None: all elements are coded
  grids: tuple[Grids, ...]   # portable files: the grids of the rows, then those of predicted shapes and of the map
  distribution: Distribution
  parameters: tuple[np.ndarray, ...] = ()   # predicted by the model, if each element has a row of its own


def num_skipped_rows(scale: float) -> int:
  """Returns the number of CDF rows with scales of at most `scale`. SkipError if no row has one, or all rows have."""
  try:
    rows = int(np.searchsorted(scale_table(), np.float32(scale), side="right"))
  except (TypeError, ValueError):
    raise SkipError(f"skip={scale!r}; wanted a scale, which is a number") from None
  if not 0 < rows < SCALE_LEVELS:
    raise SkipError(f"skip={scale:g}; wanted a scale of at least {scale_table()[0]:g} and below {scale_table()[-1]:g}")
  return rows


def choose(distribution: Distribution, positions: jax.Array, prior: Prior, origin: Origin | None, skipped_rows: int,
           use_map: bool) -> PassCoding:
  """Chooses the rows, mask and grids of a pass in the encoder.

  The elements of the first `skipped_rows` scale levels are skipped; with `use_map` also those that the selection map
  leaves out. `origin` is None for a file that is not portable."""
  shapes = _shape_positions(distribution, prior)
  if origin is None:
    levels = np.asarray(jit_functions.rows(prior))
    coded = np.asarray(prior.keep) > 0 if use_map else None
    return _pass_coding(distribution, prior, levels, _nearest(shapes), coded, (), skipped_rows)
  level_grids, levels = portable_cdf.choose_rows(positions, prior.mean, origin)
  grids, indices, coded = [level_grids], _nearest(shapes), None
  if shapes is not None and not distribution.shapes_agree:
    shape_grids, indices = portable_cdf.choose_shapes(shapes, positions, prior.mean, origin, distribution.num_shapes)
    grids.append(shape_grids)
  if use_map:
    assert prior.keep is not None  # as the model has a map
    map_grids, coded = portable_cdf.choose_map(prior.keep, origin)
    grids.append(map_grids)
  return _pass_coding(distribution, prior, levels, indices, coded, tuple(grids), skipped_rows)


def read_choice(distribution: Distribution, decoder: Decoder, positions: jax.Array, prior: Prior,
                content: Bitstream) -> PassCoding:
  """Reads the grids of the next pass from `decoder`; returns its rows, mask and grids."""
  if content.origin is None:
    return choose(distribution, positions, prior, None, content.skipped_rows, content.uses_map)
  read_grids = lambda: decoder.decode_grids(positions.size, fixed=content.version < bitstream.VERSION)
  grids, coded = [read_grids()], None
  shapes = _shape_positions(distribution, prior)
  indices = _nearest(shapes)
  if shapes is not None and not distribution.shapes_agree:
    grids.append(read_grids())
    indices = portable_cdf.shape_indices(shapes, grids[1], distribution.num_shapes)
  if content.uses_map:
    assert prior.keep is not None  # as the model has a map
    grids.append(read_grids())
    coded = portable_cdf.coded_by_map(prior.keep, grids[-1])
  levels = portable_cdf.rows(np.asarray(positions), grids[0])
  return _pass_coding(distribution, prior, levels, indices, coded, tuple(grids), content.skipped_rows)


def _shape_positions(distribution: Distribution, prior: Prior) -> np.ndarray | None:
  if distribution.num_shapes == 1:
    return None
  return distribution.shape_positions(tuple(map(np.asarray, prior.parameters)))


def _nearest(shapes: np.ndarray | None) -> np.ndarray | None:
  """Returns the int32 index of the nearest shape; 0 for NaN, which damaged data may give."""
  return None if shapes is None else np.rint(np.nan_to_num(shapes)).astype(np.int32)


def _pass_coding(distribution: Distribution, prior: Prior, levels: np.ndarray, shapes: np.ndarray | None,
                 by_map: np.ndarray | None, grids: tuple[Grids, ...], skipped_rows: int) -> PassCoding:
  masks = [each for each in (by_map, levels >= skipped_rows if skipped_rows else None) if each is not None]
  parameters = tuple(map(np.asarray, prior.parameters))
  rows = shifted_levels(levels, distribution.level_shifts(parameters))
  rows = rows if shapes is None else rows + np.int32(SCALE_LEVELS) * shapes
  coded = np.logical_and.reduce(masks) if masks else None
  return PassCoding(rows, coded, grids, distribution, () if distribution.num_shapes else parameters)


def shifted_levels(levels: np.ndarray, shifts: np.ndarray | None) -> np.ndarray:
  """Returns levels plus shifts (see Distribution.level_shifts), int32 in 0..SCALE_LEVELS - 1."""
  if shifts is None:
    return levels
  return np.where(levels < UNSHIFTED_LEVELS, levels, np.clip(levels + shifts, 0, SCALE_LEVELS - 1)).astype(np.int32)


def restrict(coding: PassCoding, inside: np.ndarray | None, anchors: bool) -> PassCoding:
  """Skips the elements of a pass outside `inside` (h, w) bool, the positions of the image in a tile that exceeds it.

  None: the pass is unchanged."""
  if inside is None:
    return coding
  h, w = inside.shape
  is_anchor = (np.arange(h)[:, None] + np.arange(w)) % 2 == 1
  packed = np.broadcast_to(inside[is_anchor == anchors].reshape(1, h, w // 2, 1), coding.rows.shape)
  return coding._replace(coded=packed if coding.coded is None else coding.coded & packed)


def mask_skipped(symbols: np.ndarray, coding: PassCoding) -> np.ndarray:
  """Returns the symbols of a pass, 0 where skipped."""
  return symbols if coding.coded is None else np.where(coding.coded, symbols, np.int32(0))


def mark_skipped(symbols: np.ndarray, coding: PassCoding | None, config: CodecConfig) -> np.ndarray:
  """Returns the symbols of a pass for the model: skipped ones are marked if the model applies no LRP to them."""
  if coding is None or coding.coded is None:
    return symbols
  return np.where(coding.coded, symbols, selection_map.skipped_symbol(config))


def encode(encoder: Encoder, symbols: np.ndarray, coding: PassCoding) -> None:
  """Appends the grids and the coded symbols of a pass."""
  for grids in coding.grids:
    encoder.encode_grids(grids, coding.rows.size)
  coded = ... if coding.coded is None else coding.coded
  if coding.distribution.num_shapes:
    encoder.encode(symbols[coded], coding.rows[coded])
    return
  symbols = symbols[coded].ravel()
  for elements, table in _element_tables(coding, symbols.size):
    encoder.encode_elements(symbols[elements], table)


def decode(decoder: Decoder, coding: PassCoding) -> np.ndarray:
  """Decodes the int32 symbols of a pass, in the shape of its rows; skipped ones are 0."""
  coded = np.ones(coding.rows.shape, bool) if coding.coded is None else coding.coded
  if coding.distribution.num_shapes:
    if coding.coded is None:
      return decoder.decode(coding.rows)
    decoded = decoder.decode(coding.rows[coded])
  else:
    decoded = np.concatenate([np.zeros(0, np.int32), *(
        decoder.decode_elements(table) for _, table in _element_tables(coding, int(coded.sum())))])
  symbols = np.zeros(coding.rows.shape, np.int32)
  symbols[coded] = decoded
  return symbols


def _element_tables(coding: PassCoding, count: int) -> Iterator[tuple[slice, CDFTable]]:
  """Yields blocks of at most ELEMENTS_MAX coded elements of a pass, each with a table of one row per element."""
  coded = ... if coding.coded is None else coding.coded
  parameters = [each[coded].ravel() for each in coding.parameters]
  for first in range(0, count, ELEMENTS_MAX):
    elements = slice(first, first + ELEMENTS_MAX)
    of_block = coding.distribution.element_table(tuple(each[elements] for each in parameters))
    yield elements, CDFTable(*of_block)
