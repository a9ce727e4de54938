"""Selective coding: where the prior is sure, an element takes its mean and is not coded.

Sure is a prior with a small scale. What decides is the row of the coding table, an integer that both sides have anyway,
and that machines agree on in portable files: the elements of the first rows are left out. The file says how many rows
these are, and nothing else is sent. The simple relative of the guided selective compression of MLICv2; DCVC and JPEG
AI skip by the scale as well.

It is no less than rounding with a wide zero bin and the bits of the zeros saved: an element that is left out although
its symbol is not zero costs distortion, and saves the many bits of a symbol that was not expected.
"""
import copy
from typing import Any

import numpy as np

from mlic_jax.coding.rangecoder import Decoder, Encoder
from mlic_jax.model.scales import SCALE_LEVELS, scale_table

CERTAIN = 1e-3  # a scale at which a zero costs no bits


class SkipError(ValueError):
  """A scale that nothing can be left out by; one line."""


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


def leave_out(symbols: np.ndarray, scale: np.ndarray, rows: np.ndarray, skipped: int) -> tuple[np.ndarray, np.ndarray]:
  """The symbols of a pass, 0 for elements in the first `skipped` rows, and the scales by which these cost no bits."""
  if not skipped:
    return symbols, scale
  out = rows < skipped
  return np.where(out, np.int32(0), symbols), np.where(out, np.float32(CERTAIN), scale)


def encode(encoder: Encoder, symbols: np.ndarray, rows: np.ndarray, skipped: int) -> None:
  """Appends the symbols that are not left out."""
  coded = rows >= skipped if skipped else ...
  encoder.encode(symbols[coded], rows[coded])


def decode(decoder: Decoder, rows: np.ndarray, skipped: int) -> np.ndarray:
  """The int32 symbols of a pass, in the shape of `rows`."""
  if not skipped:
    return decoder.decode(rows)
  symbols, coded = np.zeros(rows.shape, np.int32), rows >= skipped
  symbols[coded] = decoder.decode(rows[coded])
  return symbols
