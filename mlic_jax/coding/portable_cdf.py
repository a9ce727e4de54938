"""Rows of the coding table that machines agree on although their floats do not: shifted grids, one chosen per block.

A row is picked by the position t of a scale among the levels of the table (likelihoods.scale_place). Another device or
another version of jax computes a t that is off in its last bits, and where t lies at the edge of a row that makes
another row, after which everything decodes to garbage. So the encoder may shift the edges:

    row = clip(ceil(t + shift), 0, 63)          one shift for each block of a pass

It takes the first shift for which no t of the block lies near an edge, and the file says which. A decoder whose t are
off by less than the rounding error margin of the encoder then takes the same rows. Only + and ceil touch t, in float32
on the host: both are exact everywhere.

The margin is epsilon, and more where a scale is small beside the other terms of the same sums: their rounding errors do
not shrink with the scale that comes out, and t is its logarithm (see `required_margins`; benchmarks/cross_platform.py
measures the errors). Only the encoder needs the margin.

A pass (1, h, w/2, Cs) is cut into blocks in C order; the last one may be short. Large blocks have fewer choices to
write, small ones find a safe grid sooner: the encoder takes the size that costs the fewest bits, pass by pass.
"""
import platform
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mlic_jax.coding import bitstream
from mlic_jax.coding.bitstream import Bitstream, Origin, PortabilityError
from mlic_jax.coding.cdf_tables import PRECISION, quantize_pmf
from mlic_jax.config import CodecConfig
from mlic_jax.model.scale_table import SCALE_LEVELS, SCALE_MIN, SCALE_STEP

EPSILON_EXPONENT = 12  # epsilon = 2^-12 of the step from level to level
NARROW = 240           # channels of h_s, half of MLIC++'s, up to which epsilon is half of that
MARGIN_MAX = 1 / 57  # of any scale: below 1/56, so that t = 0 is safe in the grid with the smallest shift
# How much of the margin goes with the magnitude at a spatial position, and of a channel: fitted to the differences that
# benchmarks/cross_platform.py finds, so that none takes more than a quarter of it, in few bytes.
SPATIAL_WEIGHT, CHANNEL_WEIGHT = 1.25, 0.3
GRIDS = 28             # shifts to choose from
BLOCK_SIZES = tuple(256 << doubled for doubled in range(10))  # elements that share a shift, 256 to 131072

# Odd multiples of 1/56, the smallest first, all within half a step: -1/56, 1/56, -3/56, ... None of them is 0, because
# most scales are SCALE_MIN itself, for which t = 0: the edge of the first row if nothing is shifted. A negative shift
# comes first as it leaves them in that row.
_GRID = np.arange(GRIDS)
SHIFTS = ((-1.0)**(_GRID + 1) * (2 * (_GRID // 2) + 1) / (2 * GRIDS)).astype(np.float32)
# The grid whose edge is the nearest to t, by floor(28 (ceil(t) - t)).
_NEAREST = np.argsort(SHIFTS % 1)

# Probabilities of choosing grid 0, 1, ...: geometric, for blocks of which such a share is safe in a grid. A pass of
# several blocks says which share it is coded by; for a single block that is not worth its bits.
SAFE_SHARES = (0.03, 0.08, 0.18, 0.32, 0.5, 0.7, 0.87, 0.96)
SINGLE_SHARE = 0.5
CHOICE_COUNTS = tuple(quantize_pmf(share * (1 - share)**_GRID) for share in SAFE_SHARES)
# Probabilities of blocks 2^0, 2^1, ... times smaller than a single one would be (or than the largest).
HALVED_COUNTS = quantize_pmf(np.array([0.35, 0.06, 0.09, 0.13, 0.13, 0.1, 0.06, 0.04, 0.02, 0.02]))
_CHOICE_BITS, _HALVED_BITS = (PRECISION - np.log2(counts) for counts in (np.stack(CHOICE_COUNTS), HALVED_COUNTS))
MAP_STEP = 1 / 2                    # t per unit of log-odds: the first grid shifts the edge of a map by 1/28
MAP_POSITION_MAX = np.float32(0.5)  # which with any shift stays 1/56 away from the integers beside 0
FIXED_SIZE, FIXED_SHARE = 2048, 0.7  # of all passes in files of versions 2 and 3


class Grids(NamedTuple):
  """How a pass is coded: its blocks, and the grid of each."""
  size: int             # elements of a block, one of BLOCK_SIZES
  share: float          # of blocks that are safe in a grid, one of SAFE_SHARES; what the choices cost goes by it
  choices: np.ndarray   # (blocks,) int32, 0 .. GRIDS - 1


def num_blocks(elements: int, size: int) -> int:
  """Blocks of a pass."""
  return -(-elements // size)


def max_size_index(elements: int) -> int:
  """The index in BLOCK_SIZES of the smallest size of which one block holds a whole pass, or of the largest size."""
  return min(max(num_blocks(elements, BLOCK_SIZES[0]) - 1, 0).bit_length(), len(BLOCK_SIZES) - 1)


def required_margins(positions: np.ndarray, means: np.ndarray, epsilon: float) -> np.ndarray:
  """The margin to the edges of rows that each element of a pass needs, in the shape of `positions` and `means`.

  Scale and mean of an element are sums over the same features of its spatial position, and neither says how large these
  are: scales end at SCALE_MIN and have a bias, means may cancel. The geometric mean of both, over the channels, follows
  the errors best. Channels, the last axis, have weights of their own: those of large scales have large errors."""
  scale = SCALE_MIN * np.exp(SCALE_STEP * _bounded(positions).astype(np.float64))
  rms = lambda x, axis: np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=axis, keepdims=True))
  spatial = np.sqrt(rms(scale, -1) * rms(means, -1))
  channel = rms(scale, tuple(range(scale.ndim - 1)))
  return np.minimum(epsilon * (1 + (SPATIAL_WEIGHT * spatial + CHANNEL_WEIGHT * channel) / scale), MARGIN_MAX)


def choose_grids(positions: np.ndarray, margins: np.ndarray | float) -> Grids:
  """The grids of a pass with the fewest bits: in each block the first in which all elements have their margins.

  Where there is none in a block of any size, blocks are of the size that leaves the fewest elements in such blocks, and
  there the grid is taken in which the worst element has the most of its margin. `positions` are those of a pass,
  float32; margins are at most MARGIN_MAX.
  """
  positions, margins = _bounded(positions).ravel(), np.broadcast_to(margins, positions.shape).ravel()
  unsafe, most = _unsafe(positions, margins), max_size_index(positions.size)
  candidates = []
  for doubled, size in enumerate(BLOCK_SIZES[:most + 1]):
    if doubled:
      unsafe = np.logical_or.reduceat(unsafe, np.arange(0, len(unsafe), 2))
    unsafe_elements, choices = size * unsafe.all(axis=1).sum(), unsafe.argmin(axis=1)
    bits = _CHOICE_BITS @ np.bincount(choices, minlength=GRIDS)
    share_index = int(bits.argmin()) if len(choices) > 1 else SAFE_SHARES.index(SINGLE_SHARE)
    cost = bits[share_index] + (_HALVED_BITS[most - doubled] if most else 0) + (3 if len(choices) > 1 else 0)
    candidates.append((unsafe_elements, cost, size, SAFE_SHARES[share_index], choices, unsafe))
  _, _, size, share, choices, unsafe = min(candidates, key=lambda candidate: candidate[:2])
  choices = choices.astype(np.int32)
  for block in np.flatnonzero(unsafe.all(axis=1)):
    elements = slice(block * size, (block + 1) * size)
    shifted = positions[elements] + SHIFTS[:, None]
    choices[block] = (np.abs(shifted - np.rint(shifted)) / margins[elements]).min(axis=1).argmax()
  return Grids(size, share, choices)


def _unsafe(positions: np.ndarray, margins: np.ndarray) -> np.ndarray:
  """(blocks of the smallest size, GRIDS) bool, whether an element of the block lies within its margin of an edge.

  Edges of different grids lie 1/28 apart, and a margin is below 1/56: no t is near those of two grids."""
  nearest = _NEAREST[np.minimum((GRIDS * (np.ceil(positions) - positions)).astype(np.int32), GRIDS - 1)]
  shifted = positions + SHIFTS[nearest]
  near = np.flatnonzero(np.abs(shifted - np.rint(shifted)) <= margins)
  unsafe = np.zeros((num_blocks(positions.size, BLOCK_SIZES[0]), GRIDS), bool)
  unsafe[near // BLOCK_SIZES[0], nearest[near]] = True
  return unsafe


def choose_rows(positions: np.ndarray | jax.Array, means: np.ndarray | jax.Array, origin: Origin,
                ) -> tuple[Grids, np.ndarray]:
  """The grids of a pass, as `choose_grids` has them, and the rows that they make."""
  positions = np.asarray(positions)
  grids = choose_grids(positions, required_margins(positions, np.asarray(means), 2.0**-origin.epsilon_exponent))
  return grids, rows(positions, grids)


def choose_map(keep: np.ndarray | jax.Array, origin: Origin) -> tuple[Grids, np.ndarray]:
  """The grids of a pass for its selection map, of which `keep` are the log-odds, and which elements are coded."""
  grids = choose_grids(map_positions(keep), 2.0**-origin.epsilon_exponent)
  return grids, coded_by_map(keep, grids)


def coded_by_map(keep: np.ndarray | jax.Array, grids: Grids) -> np.ndarray:
  """bool, in the shape of `keep`, which elements are coded: the row of a map is 0 or 1."""
  return rows(map_positions(keep), grids) > 0


def map_positions(keep: np.ndarray | jax.Array) -> np.ndarray:
  """Log-odds as positions around 0, the one edge that a map has."""
  return np.clip(np.asarray(keep) * np.float32(MAP_STEP), -MAP_POSITION_MAX, MAP_POSITION_MAX)


def rows(positions: np.ndarray, grids: Grids) -> np.ndarray:
  """int32 rows of the coding table, in the shape of `positions`."""
  return np.clip(np.ceil(shifted_positions(positions, grids)), 0, SCALE_LEVELS - 1).astype(np.int32)


def shifted_positions(positions: np.ndarray, grids: Grids) -> np.ndarray:
  """The positions of a pass, shifted by the grids of their blocks: edges of rows are then at integers."""
  shifts = np.repeat(SHIFTS[grids.choices], grids.size)[:positions.size].reshape(positions.shape)
  return _bounded(positions) + shifts


def epsilon_exponent(config: CodecConfig) -> int:
  """e of the files of a model, whose epsilon is 2^-e. The error of a sum grows with the number of its terms, and most
  of the error of the first scales comes from the sums of h_s, so narrow models need half the margin."""
  return EPSILON_EXPONENT + (max(config.hyper_synthesis_widths) <= NARROW)


def origin_of_this_machine(config: CodecConfig | None = None) -> Origin:
  """How files written on this machine name it, with the epsilon of a model."""
  known = lambda names, name: name if name in names else names[0]
  machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
  exponent = epsilon_exponent(config) if config else EPSILON_EXPONENT
  return Origin(exponent, known(bitstream.PLATFORMS, jax.default_backend()), known(bitstream.MACHINES, machine),
                jax.__version_info__[:3])


def check_symbols(content: Bitstream, k: int, symbols: Sequence[np.ndarray]) -> None:
  """PortabilityError unless the anchors and non-anchors of slice k are those that were encoded."""
  if bitstream.symbol_checksum(*symbols) != content.symbol_checksums[k]:
    assert content.origin is not None  # only portable files have checksums
    raise PortabilityError(
        f"slice {k + 1} of {content.num_slices} decodes to other symbols than were encoded: the file was written on "
        f"{content.origin}; this is {origin_of_this_machine()} (differences beyond epsilon "
        f"{content.origin.epsilon}, or altered data)")


def _bounded(positions: np.ndarray) -> np.ndarray:
  """Positions beyond the last level, or that are NaN (altered data leads there), at the last level."""
  return np.fmin(positions, np.float32(SCALE_LEVELS - 1))
