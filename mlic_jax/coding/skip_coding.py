"""Skip coding: where the prior is nearly certain, an element takes its mean and is not coded.

A prior is nearly certain where its scale is small. The criterion is the row of the coding table, an integer that both
sides have anyway, and that machines agree on in portable files: the elements of the first rows are skipped. The file
says how many rows these are, and nothing else is sent. This is the simple relative of the guided selective compression
of MLICv2; DCVC and JPEG AI skip by the scale as well.

Skipping is not the same as rounding with a wide zero bin and saving the bits of the zeros: an element that is skipped
although its symbol is not zero costs distortion, and saves the many bits of a symbol that was not expected.

A model may also predict which elements are coded (model/selection_map.py): the guided form. Machines agree on its map
as they agree on rows, by grids of its own (portable_cdf.py).
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
  """A scale that no elements can be skipped by; one line."""


class PassCoding(NamedTuple):
  """How the elements of a pass are coded."""
  rows: np.ndarray           # int32, of the coding table, (1, h, w/2, Cs)
  coded: np.ndarray | None   # bool, False for elements that are skipped; None: all are coded
  grids: tuple[Grids, ...]   # of a portable file: those of the rows, and those of the map


def num_skipped_rows(scale: float) -> int:
  """How many rows of the coding table have scales of at most `scale`. SkipError unless that is some, and not all."""
  try:
    rows = int(np.searchsorted(scale_table(), np.float32(scale), side="right"))
  except (TypeError, ValueError):
    raise SkipError(f"skip={scale!r} came; wanted a scale, a number") from None
  if not 0 < rows < SCALE_LEVELS:
    raise SkipError(f"skip={scale:g}; wanted a scale of at least {scale_table()[0]:g} and below {scale_table()[-1]:g}")
  return rows


def choose(positions: jax.Array, prior: Prior, origin: Origin | None, skipped_rows: int, use_map: bool) -> PassCoding:
  """How an encoder codes a pass, of which `positions` are the table positions. The first `skipped_rows` rows are
  skipped, and if `use_map` also the elements that the map of the model leaves out."""
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
  """How the next pass of a file is coded; `decoder` stands before the grids of the pass."""
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
  """The symbols of a pass, 0 where they are skipped, and scales by which these cost no bits."""
  if coding.coded is None:
    return symbols, scale
  return np.where(coding.coded, symbols, np.int32(0)), np.where(coding.coded, scale, np.float32(CERTAIN))


def mark_skipped(symbols: np.ndarray, coding: PassCoding | None, config: CodecConfig) -> np.ndarray:
  """The symbols of a pass as the model takes them: marked where they are skipped, if its LRP leaves these alone."""
  if coding is None or coding.coded is None:
    return symbols
  return np.where(coding.coded, symbols, selection_map.symbol_left_out(config))


def encode(encoder: Encoder, symbols: np.ndarray, coding: PassCoding) -> None:
  """Appends the grids, and the symbols that are not skipped."""
  for grids in coding.grids:
    encoder.encode_grids(grids, coding.rows.size)
  coded = ... if coding.coded is None else coding.coded
  encoder.encode(symbols[coded], coding.rows[coded])


def decode(decoder: Decoder, coding: PassCoding) -> np.ndarray:
  """The int32 symbols of a pass, in the shape of its rows."""
  if coding.coded is None:
    return decoder.decode(coding.rows)
  symbols = np.zeros(coding.rows.shape, np.int32)
  symbols[coding.coded] = decoder.decode(coding.rows[coding.coded])
  return symbols
