"""Portable CDF rows: machines find the same rows although their floats differ in the last bits.

The position t of a scale among the levels of the table selects its row (likelihoods.scale_level). Another device or
version of JAX computes a t that differs in its last bits. If t lies at an edge between rows, it selects another row,
and everything after it decodes to garbage. The encoder therefore shifts the edges:

    row = clip(ceil(t + shift), 0, 63)          one shift (grid) for each block of a pass

It uses the first shift for which no t of the block lies near an edge, and stores its index. A decoder whose t differ by
less than the rounding error margin of the encoder finds the same rows. The decoder applies only + and ceil to t, in
float32 on the host, and both are exact on every machine.

The margin is epsilon, and larger where a scale is small beside the other terms of the sums that compute it. Their
rounding errors do not shrink with the result, and t is its logarithm (see `required_margins`; the benchmark
benchmarks/cross_platform.py measures the errors). Only the encoder needs the margin.

Where the entropy networks predict the shape of a distribution, its position among the shapes selects an index in the
same way, with grids of its own: ceil(t - 1/2 + shift), the nearest shape if the shift is 0.

A pass (1, h, w/2, Cs) is cut into blocks in C order; the last one may be short. Large blocks have fewer indices to
store; small ones are more often safe in an early grid. The encoder uses the size with the fewest bits for each pass.
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

EPSILON_EXPONENT = 12  # epsilon = 2^-12, in units of the step between levels
NARROW = 240           # epsilon is half as large up to this number of channels in h_s, half of MLIC++'s
MARGIN_MAX = 1 / 57    # below 1/56, so t = 0 is safe in the grid with the smallest shift
# Weights of the magnitudes at a spatial position and of a channel in the margin. They were fitted to the errors that
# benchmarks/cross_platform.py measures: none exceeds a quarter of the margin, at the cost of few bytes.
SPATIAL_WEIGHT, CHANNEL_WEIGHT = 1.25, 0.3
GRIDS = 28             # number of grids, and of their shifts
BLOCK_SIZES = tuple(256 << doubled for doubled in range(10))  # elements that share a grid, 256 to 131072

# The shifts are odd multiples of 1/56, the smallest first, within half a step: -1/56, 1/56, -3/56, ... None is 0,
# because most scales are SCALE_MIN, where t = 0 is the unshifted edge of the first row. A negative shift comes first,
# because it leaves these scales in the first row.
_GRID = np.arange(GRIDS)
SHIFTS = ((-1.0)**(_GRID + 1) * (2 * (_GRID // 2) + 1) / (2 * GRIDS)).astype(np.float32)
# _NEAREST[floor(28 (ceil(t) - t))] is the grid with the edge nearest to t.
_NEAREST = np.argsort(SHIFTS % 1)

# Probabilities of the grids 0, 1, ...: geometric distributions for different shares of blocks that are safe in a grid.
# A pass with several blocks stores the index of its share; for a single block that costs more bits than it saves.
SAFE_SHARES = (0.03, 0.08, 0.18, 0.32, 0.5, 0.7, 0.87, 0.96)
SINGLE_SHARE = 0.5
CHOICE_COUNTS = tuple(quantize_pmf(share * (1 - share)**_GRID) for share in SAFE_SHARES)
# Probabilities that blocks are 2^0, 2^1, ... times smaller than a single block for the pass (or than the largest size).
HALVED_COUNTS = quantize_pmf(np.array([0.35, 0.06, 0.09, 0.13, 0.13, 0.1, 0.06, 0.04, 0.02, 0.02]))
_CHOICE_BITS, _HALVED_BITS = (PRECISION - np.log2(counts) for counts in (np.stack(CHOICE_COUNTS), HALVED_COUNTS))
MAP_STEP = 1 / 2                    # t per unit of log-odds: the first grid shifts the edge of a map by 1/28
MAP_POSITION_MAX = np.float32(0.5)  # with any shift it stays 1/56 away from the integers other than 0
FIXED_SIZE, FIXED_SHARE = 2048, 0.7  # for all passes in files of versions 2 and 3


class Grids(NamedTuple):
  """The block size of a pass, and the grid of each block."""
  size: int             # elements of a block, one of BLOCK_SIZES
  share: float          # share of the blocks that are safe in a grid, one of SAFE_SHARES: selects the code of `choices`
  choices: np.ndarray   # (blocks,) int32, the grid of each block, 0 .. GRIDS - 1


def num_blocks(elements: int, size: int) -> int:
  """Returns the number of blocks of a pass."""
  return -(-elements // size)


def max_size_index(elements: int) -> int:
  """Returns the index of the smallest block size that covers a pass with one block, or of the largest size."""
  return min(max(num_blocks(elements, BLOCK_SIZES[0]) - 1, 0).bit_length(), len(BLOCK_SIZES) - 1)


def required_margins(positions: np.ndarray, means: np.ndarray, epsilon: float) -> np.ndarray:
  """Returns the rounding error margin of each element of a pass, in the shape of `positions` and `means`.

  Scale and mean of an element are sums over the same features of its spatial position. Neither alone shows how large
  these features are: scales are bounded by SCALE_MIN and have a bias, and means may cancel. The geometric mean of both,
  over the channels, follows the errors best. Channels (the last axis) with large scales have larger errors."""
  scale = _scales(positions)
  channel = _rms(scale, tuple(range(scale.ndim - 1)))
  magnitude = SPATIAL_WEIGHT * _spatial(scale, means) + CHANNEL_WEIGHT * channel
  return np.minimum(epsilon * (1 + magnitude / scale), MARGIN_MAX)


def required_shape_margins(shapes: np.ndarray, positions: np.ndarray, means: np.ndarray, epsilon: float) -> np.ndarray:
  """Returns the margin of each element's position among the shapes, `shapes`.

  The position is a sum over the same features as the scale and has the same error, but it is linear in that sum, while
  t is the logarithm of a scale."""
  magnitude = SPATIAL_WEIGHT * _spatial(_scales(positions), means)
  channel = _rms(shapes, tuple(range(shapes.ndim - 1)))
  return np.minimum(epsilon * (1 + SCALE_STEP * (magnitude + CHANNEL_WEIGHT * channel)), MARGIN_MAX)


def _scales(positions: np.ndarray) -> np.ndarray:
  return SCALE_MIN * np.exp(SCALE_STEP * _bounded(positions).astype(np.float64))


def _rms(x: np.ndarray, axis) -> np.ndarray:
  return np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=axis, keepdims=True))


def _spatial(scale: np.ndarray, means: np.ndarray) -> np.ndarray:
  return np.sqrt(_rms(scale, -1) * _rms(means, -1))


def choose_grids(positions: np.ndarray, margins: np.ndarray | float) -> Grids:
  """Chooses the block size with the fewest bits, and for each block the first safe grid.

  A grid is safe if all elements of the block have their margins in it. If a block has no safe grid at any size, the
  block size is the one with the fewest elements in such blocks, and such a block uses the grid in which its worst
  element has the largest part of its margin.

  Args:
    positions: float32 positions of a pass.
    margins: margin of each element, or of all, at most MARGIN_MAX.
  """
  positions, margins = _bounded(positions).ravel(), np.broadcast_to(margins, positions.shape).ravel()
  unsafe, largest = _unsafe(positions, margins), max_size_index(positions.size)
  candidates = []
  for doubled, size in enumerate(BLOCK_SIZES[:largest + 1]):
    if doubled:
      unsafe = np.logical_or.reduceat(unsafe, np.arange(0, len(unsafe), 2))
    unsafe_elements, choices = size * unsafe.all(axis=1).sum(), unsafe.argmin(axis=1)
    bits = _CHOICE_BITS @ np.bincount(choices, minlength=GRIDS)
    share_index = int(bits.argmin()) if len(choices) > 1 else SAFE_SHARES.index(SINGLE_SHARE)
    cost = bits[share_index] + (_HALVED_BITS[largest - doubled] if largest else 0) + (3 if len(choices) > 1 else 0)
    candidates.append((unsafe_elements, cost, size, SAFE_SHARES[share_index], choices, unsafe))
  _, _, size, share, choices, unsafe = min(candidates, key=lambda candidate: candidate[:2])
  choices = choices.astype(np.int32)
  for block in np.flatnonzero(unsafe.all(axis=1)):
    elements = slice(block * size, (block + 1) * size)
    shifted = positions[elements] + SHIFTS[:, None]
    choices[block] = (np.abs(shifted - np.rint(shifted)) / margins[elements]).min(axis=1).argmax()
  return Grids(size, share, choices)


def _unsafe(positions: np.ndarray, margins: np.ndarray) -> np.ndarray:
  """Returns whether an element of a block lies within its margin of an edge, (blocks of the smallest size, GRIDS) bool.

  Edges of different grids lie 1/28 apart, and margins are below 1/56, so each t is near an edge of one grid at most."""
  nearest = _NEAREST[np.minimum((GRIDS * (np.ceil(positions) - positions)).astype(np.int32), GRIDS - 1)]
  shifted = positions + SHIFTS[nearest]
  near = np.flatnonzero(np.abs(shifted - np.rint(shifted)) <= margins)
  unsafe = np.zeros((num_blocks(positions.size, BLOCK_SIZES[0]), GRIDS), bool)
  unsafe[near // BLOCK_SIZES[0], nearest[near]] = True
  return unsafe


def choose_rows(positions: np.ndarray | jax.Array, means: np.ndarray | jax.Array, origin: Origin,
                ) -> tuple[Grids, np.ndarray]:
  """Chooses the grids of a pass (see `choose_grids`); returns them and the resulting rows."""
  positions = np.asarray(positions)
  grids = choose_grids(positions, required_margins(positions, np.asarray(means), 2.0**-origin.epsilon_exponent))
  return grids, rows(positions, grids)


def choose_shapes(shapes: np.ndarray, positions: np.ndarray | jax.Array, means: np.ndarray | jax.Array,
                  origin: Origin, num_shapes: int) -> tuple[Grids, np.ndarray]:
  """Chooses the grids for the predicted shapes of a pass; returns them and the resulting shape indices."""
  margins = required_shape_margins(shapes, np.asarray(positions), np.asarray(means), 2.0**-origin.epsilon_exponent)
  grids = choose_grids(shapes - np.float32(0.5), margins)
  return grids, shape_indices(shapes, grids, num_shapes)


def shape_indices(shapes: np.ndarray, grids: Grids, num_shapes: int) -> np.ndarray:
  """Returns the int32 shape index of each element, 0 to num_shapes - 1, from its float32 position among the shapes."""
  return np.minimum(rows(shapes - np.float32(0.5), grids), num_shapes - 1)


def choose_map(keep: np.ndarray | jax.Array, origin: Origin) -> tuple[Grids, np.ndarray]:
  """Chooses the grids of a selection map with log-odds `keep`; returns them and a mask of the coded elements."""
  grids = choose_grids(map_positions(keep), 2.0**-origin.epsilon_exponent)
  return grids, coded_by_map(keep, grids)


def coded_by_map(keep: np.ndarray | jax.Array, grids: Grids) -> np.ndarray:
  """Returns the mask of the coded elements, in the shape of `keep`: the row of a map is 0 or 1, and 1 is coded."""
  return rows(map_positions(keep), grids) > 0


def map_positions(keep: np.ndarray | jax.Array) -> np.ndarray:
  """Converts log-odds to positions around 0, the only edge of a map."""
  return np.clip(np.asarray(keep) * np.float32(MAP_STEP), -MAP_POSITION_MAX, MAP_POSITION_MAX)


def rows(positions: np.ndarray, grids: Grids) -> np.ndarray:
  """Returns the int32 CDF rows, in the shape of `positions`."""
  return np.clip(np.ceil(shifted_positions(positions, grids)), 0, SCALE_LEVELS - 1).astype(np.int32)


def shifted_positions(positions: np.ndarray, grids: Grids) -> np.ndarray:
  """Shifts the positions of a pass by the grids of their blocks, so that edges of rows are at integers."""
  shifts = np.repeat(SHIFTS[grids.choices], grids.size)[:positions.size].reshape(positions.shape)
  return _bounded(positions) + shifts


def epsilon_exponent(config: CodecConfig) -> int:
  """Returns e for the files of a model, where epsilon is 2^-e.

  The error of a sum grows with the number of its terms, and most of the error of small scales comes from the sums of
  h_s. Narrow models therefore need only half the margin."""
  return EPSILON_EXPONENT + (max(config.hyper_synthesis_widths) <= NARROW)


def origin_of_this_machine(config: CodecConfig | None = None) -> Origin:
  """Returns the Origin of files that this machine writes, with the epsilon of a model."""
  known = lambda names, name: name if name in names else names[0]
  machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
  exponent = epsilon_exponent(config) if config else EPSILON_EXPONENT
  return Origin(exponent, known(bitstream.PLATFORMS, jax.default_backend()), known(bitstream.MACHINES, machine),
                jax.__version_info__[:3])


def check_symbols(content: Bitstream, k: int, symbols: Sequence[np.ndarray]) -> None:
  """Raises PortabilityError unless the symbols of anchors and non-anchors of slice k match their checksum."""
  if bitstream.symbol_checksum(*symbols) != content.symbol_checksums[k]:
    assert content.origin is not None  # only portable files have checksums
    raise PortabilityError(
        f"slice {k + 1} of {content.num_slices} decodes to other symbols than were encoded: the file was written on "
        f"{content.origin}; this is {origin_of_this_machine()} (rounding errors above epsilon "
        f"{content.origin.epsilon}, or altered data)")


def _bounded(positions: np.ndarray) -> np.ndarray:
  """Moves positions beyond the last level to the last level, and NaN as well, which altered data may cause."""
  return np.fmin(positions, np.float32(SCALE_LEVELS - 1))
