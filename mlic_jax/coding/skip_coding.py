"""Selective coding: where the prior is sure, an element takes its mean and is not coded.

Sure is a prior with a small scale. What decides is the row of the coding table, an integer that both sides have anyway,
and that machines agree on in portable files: the elements of the first rows are left out. The file says how many rows
these are, and nothing else is sent. The simple relative of the guided selective compression of MLICv2; DCVC and JPEG
AI skip by the scale as well.

It is no less than rounding with a wide zero bin and the bits of the zeros saved: an element that is left out although
its symbol is not zero costs distortion, and saves the many bits of a symbol that was not expected.

A model may predict what is coded besides (selection_map.py): the guided form. Machines agree on its map in the way
in which they agree on rows, by grids of its own (portable.py).
"""
import copy
from typing import Any, NamedTuple

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
  """A scale that nothing can be left out by; one line."""


class Chosen(NamedTuple):
  """How the elements of a pass are coded."""
  rows: np.ndarray           # int32, of the coding table, (1, h, w/2, Cs)
  coded: np.ndarray | None   # bool, False for those that are left out; None: all are coded
  grids: tuple[Grids, ...]   # of a portable file: those of the rows, and those of the map


def skipping(codec: Any, scale: float) -> Any:
  """The same Codec, which leaves out the elements of all rows whose scales are at most `scale`.

  SkipError unless the table has such a row, and others."""
  rows = int(np.searchsorted(scale_table(), np.float32(scale), side="right"))
  if not 0 < rows < SCALE_LEVELS:
    raise SkipError(f"a scale of {scale:g}; elements can be left out from {scale_table()[0]:g} on and below "
                    f"{scale_table()[-1]:g}")
  other = copy.copy(codec)
  other.skipped, other.skips_up_to = rows, scale
  other.name = f"{codec.plain_name}, without scales up to {scale:g}"
  return other


def without_map(codec: Any) -> Any:
  """The same Codec, which codes also what the map of its model leaves out."""
  other = copy.copy(codec)
  other.mapped = False
  return other


def choose(places: jax.Array, prior: Prior, origin: Origin | None, skipped: int, mapped: bool) -> Chosen:
  """How an encoder codes a pass; `places` are those of the scales. The first `skipped` rows are left out, and if
  `mapped` what the map of the model leaves out."""
  if origin is None:
    return _chosen(np.asarray(jit_functions.rows(prior)), np.asarray(prior.keep) > 0 if mapped else None, (), skipped)
  grids, rows = portable_cdf.choose_rows(places, prior.mean, origin)
  if not mapped:
    return _chosen(rows, None, (grids,), skipped)
  of_map, kept = portable_cdf.choose_map(prior.keep, origin)
  return _chosen(rows, kept, (grids, of_map), skipped)


def chosen_by(decoder: Decoder, places: jax.Array, prior: Prior, content: Bitstream) -> Chosen:
  """How the next pass of a file is coded, of which `decoder` holds what comes before its symbols."""
  if content.origin is None:
    return choose(places, prior, None, content.skipped, content.mapped)
  places = np.asarray(places)
  pull = lambda: decoder.decode_grids(places.size, fixed=content.version < bitstream.VERSION)
  grids, of_map = pull(), pull() if content.mapped else None
  kept = portable_cdf.kept(prior.keep, of_map) if content.mapped else None
  return _chosen(portable_cdf.rows(places, grids), kept, (grids,), content.skipped)


def _chosen(rows: np.ndarray, kept: np.ndarray | None, grids: tuple[Grids, ...], skipped: int) -> Chosen:
  coded = [each for each in (kept, rows >= skipped if skipped else None) if each is not None]
  return Chosen(rows, np.logical_and.reduce(coded) if coded else None, grids)


def leave_out(symbols: np.ndarray, scale: np.ndarray, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
  """The symbols of a pass, 0 for elements that are left out, and the scales by which these cost no bits."""
  if chosen.coded is None:
    return symbols, scale
  return np.where(chosen.coded, symbols, np.int32(0)), np.where(chosen.coded, scale, np.float32(CERTAIN))


def marked(symbols: np.ndarray, chosen: Chosen | None, config: CodecConfig) -> np.ndarray:
  """The symbols of a pass for the model: LEFT_OUT in place of what is left out, where it wants to know."""
  if chosen is None or chosen.coded is None:
    return symbols
  return np.where(chosen.coded, symbols, selection_map.symbol_left_out(config))


def encode(encoder: Encoder, symbols: np.ndarray, chosen: Chosen) -> None:
  """Appends the grids, and the symbols that are not left out."""
  for grids in chosen.grids:
    encoder.encode_grids(grids, chosen.rows.size)
  coded = ... if chosen.coded is None else chosen.coded
  encoder.encode(symbols[coded], chosen.rows[coded])


def decode(decoder: Decoder, chosen: Chosen) -> np.ndarray:
  """The int32 symbols of a pass, in the shape of its rows."""
  if chosen.coded is None:
    return decoder.decode(chosen.rows)
  symbols = np.zeros(chosen.rows.shape, np.int32)
  symbols[chosen.coded] = decoder.decode(chosen.rows[chosen.coded])
  return symbols
