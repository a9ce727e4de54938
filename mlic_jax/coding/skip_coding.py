"""Skip coding: an element with a small predicted scale is not coded and takes its predicted mean.

The criterion is the CDF row, an integer that encoder and decoder compute anyway and that machines agree on in portable
files. The elements of the first rows are skipped. The file stores only the number of these rows. DCVC and JPEG AI skip
by the scale as well; MLICv2's guided selective compression predicts a map instead (model/selection_map.py).

Skip coding is not a wide zero bin that saves the bits of zeros: a skipped element may have a symbol other than zero.
That costs distortion, and saves the many bits of an unexpected symbol.

Where a model has a selection map, machines agree on the map as on rows, through grids of its own (portable_cdf.py).
"""
from typing import NamedTuple

import jax
import numpy as np

from mlic_jax.coding import bitstream, jit_functions, portable_cdf
from mlic_jax.coding.bitstream import Bitstream, Origin
from mlic_jax.coding.portable_cdf import Grids
from mlic_jax.coding.rangecoder import Decoder, Encoder
from mlic_jax.config import CodecConfig
from mlic_jax.model import selection_map
from mlic_jax.model.scale_table import SCALE_LEVELS, scale_table
from mlic_jax.model.slices import Prior

CERTAIN = 1e-3  # a scale at which a zero costs no bits


class SkipError(ValueError):
  """The threshold of skip coding is invalid; the message is one line."""


class PassCoding(NamedTuple):
  """The rows, mask and grids that a pass is coded with."""
  rows: np.ndarray           # (1, h, w/2, Cs) int32, CDF rows
  coded: np.ndarray | None   # (1, h, w/2, Cs) bool, False for skipped elements; None: all elements are coded
  grids: tuple[Grids, ...]   # portable files: the grids of the rows, then those of the map


def num_skipped_rows(scale: float) -> int:
  """Returns the number of CDF rows with scales of at most `scale`. SkipError if no row has one, or all rows have."""
  try:
    rows = int(np.searchsorted(scale_table(), np.float32(scale), side="right"))
  except (TypeError, ValueError):
    raise SkipError(f"skip={scale!r}; wanted a scale, which is a number") from None
  if not 0 < rows < SCALE_LEVELS:
    raise SkipError(f"skip={scale:g}; wanted a scale of at least {scale_table()[0]:g} and below {scale_table()[-1]:g}")
  return rows


def choose(positions: jax.Array, prior: Prior, origin: Origin | None, skipped_rows: int, use_map: bool) -> PassCoding:
  """Chooses the rows, mask and grids of a pass in the encoder.

  The elements of the first `skipped_rows` rows are skipped; with `use_map` also those that the selection map leaves
  out. `origin` is None for a file that is not portable."""
  if origin is None:
    rows, coded = np.asarray(jit_functions.rows(prior)), np.asarray(prior.keep) > 0 if use_map else None
    return _pass_coding(rows, coded, (), skipped_rows)
  grids, rows = portable_cdf.choose_rows(positions, prior.mean, origin)
  if not use_map:
    return _pass_coding(rows, None, (grids,), skipped_rows)
  assert prior.keep is not None  # as the model has a map
  map_grids, coded = portable_cdf.choose_map(prior.keep, origin)
  return _pass_coding(rows, coded, (grids, map_grids), skipped_rows)


def read_choice(decoder: Decoder, positions: jax.Array, prior: Prior, content: Bitstream) -> PassCoding:
  """Reads the grids of the next pass from `decoder`; returns its rows, mask and grids."""
  if content.origin is None:
    return choose(positions, prior, None, content.skipped_rows, content.uses_map)
  read_grids = lambda: decoder.decode_grids(positions.size, fixed=content.version < bitstream.VERSION)
  grids, coded = read_grids(), None
  if content.uses_map:
    assert prior.keep is not None  # as the model has a map
    coded = portable_cdf.coded_by_map(prior.keep, read_grids())
  return _pass_coding(portable_cdf.rows(np.asarray(positions), grids), coded, (grids,), content.skipped_rows)


def _pass_coding(rows: np.ndarray, by_map: np.ndarray | None, grids: tuple[Grids, ...],
                 skipped_rows: int) -> PassCoding:
  masks = [each for each in (by_map, rows >= skipped_rows if skipped_rows else None) if each is not None]
  return PassCoding(rows, np.logical_and.reduce(masks) if masks else None, grids)


def mask_skipped(symbols: np.ndarray, scale: np.ndarray, coding: PassCoding) -> tuple[np.ndarray, np.ndarray]:
  """Returns the symbols of a pass, 0 where skipped, and its scales, replaced where skipped so that 0 costs no bits."""
  if coding.coded is None:
    return symbols, scale
  return np.where(coding.coded, symbols, np.int32(0)), np.where(coding.coded, scale, np.float32(CERTAIN))


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
  encoder.encode(symbols[coded], coding.rows[coded])


def decode(decoder: Decoder, coding: PassCoding) -> np.ndarray:
  """Decodes the int32 symbols of a pass, in the shape of its rows; skipped ones are 0."""
  if coding.coded is None:
    return decoder.decode(coding.rows)
  symbols = np.zeros(coding.rows.shape, np.int32)
  symbols[coding.coded] = decoder.decode(coding.rows[coding.coded])
  return symbols
