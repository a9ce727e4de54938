"""Rows of the coding table that machines agree on although their floats do not: shifted grids, one chosen a block.

A row is picked by the place t of a scale among the levels of the table (priors.scale_place). Another device or another
jax computes a t that is off in its last bits, and where t lies at the edge of a row that makes another row, after which
everything decodes to garbage. So the encoder may move the edges:

    row = clip(ceil(t + shift), 0, 63)          one shift for each block of a pass

It takes the first shift for which no t of the block lies near an edge, and the file says which. A decoder whose t are
off by less than the distance that was kept then takes the same rows. Only + and ceil touch t, in float32 on the host:
both are exact everywhere.

The distance is epsilon and more, the smaller a scale is beside what the same sums hold: their rounding errors do not
shrink with the scale that comes out, and t is its logarithm (see `distances`; benchmarks/cross_platform.py measures the
errors). Only the encoder needs the distance.

A pass (1, h, w/2, Cs) is cut into blocks in C order; the last one may be short. Large blocks have fewer choices to
write, small ones are safe sooner: the encoder takes the size that costs the fewest bits, pass by pass.
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
DISTANCE_MAX = 1 / 57  # of any scale: below 1/56, so that a place of 0 is safe in the grid with the smallest shift
# How much of the distance goes with the magnitude of a position, and of a channel: fitted to the differences that
# benchmarks/cross_platform.py finds, so that none takes more than a quarter of it, in few bytes.
OF_POSITION, OF_CHANNEL = 1.25, 0.3
GRIDS = 28             # shifts to choose from
BLOCK_SIZES = tuple(256 << doubled for doubled in range(10))  # elements that share a shift, 256 to 131072

# Odd multiples of 1/56, the smallest first, all within half a step: -1/56, 1/56, -3/56, ... None of them is 0, because
# most scales are SCALE_MIN itself, whose place is 0: the edge of the first row if nothing is shifted. A negative shift
# comes first as it leaves them in that row.
_GRID = np.arange(GRIDS)
SHIFTS = ((-1.0)**(_GRID + 1) * (2 * (_GRID // 2) + 1) / (2 * GRIDS)).astype(np.float32)
# The grid whose edge is the nearest to a place t, by floor(28 u) where u is what t lacks to the next integer.
_NEAREST = np.argsort(SHIFTS % 1)

# Of choosing grid 0, 1, ...: geometric, for blocks of which such a share is safe in a grid. A pass of several blocks
# says which it is coded by; what holds for one block alone is not worth saying.
SAFE_SHARES = (0.03, 0.08, 0.18, 0.32, 0.5, 0.7, 0.87, 0.96)
SINGLE_SHARE = 0.5
CHOICE_COUNTS = tuple(quantize_pmf(share * (1 - share)**_GRID) for share in SAFE_SHARES)
# Of blocks 2^0, 2^1, ... times smaller than a single one would be (or than the largest).
HALVED_COUNTS = quantize_pmf(np.array([0.35, 0.06, 0.09, 0.13, 0.13, 0.1, 0.06, 0.04, 0.02, 0.02]))
_CHOICE_BITS, _HALVED_BITS = (PRECISION - np.log2(counts) for counts in (np.stack(CHOICE_COUNTS), HALVED_COUNTS))
MAP_STEP = 1 / 2                 # of a place, for one of log-odds: the first grid moves the edge of a map by 1/28
MAP_PLACE_MAX = np.float32(0.5)  # which with any shift stays 1/56 away from the integers beside 0
FIXED_SIZE, FIXED_SHARE = 2048, 0.7  # of all passes in files of versions 2 and 3


class Grids(NamedTuple):
  """How a pass is coded: its blocks, and the grid of each."""
  size: int             # elements of a block, one of BLOCK_SIZES
  share: float          # of blocks that are safe in a grid, one of SAFE_SHARES; what the choices cost goes by it
  choices: np.ndarray   # (blocks,) int32, 0 .. GRIDS - 1


def num_blocks(elements: int, size: int) -> int:
  """Blocks of a pass."""
  return -(-elements // size)


def largest(elements: int) -> int:
  """The place in BLOCK_SIZES of the smallest size of which one block is all of a pass, or of the largest size."""
  return min(max(num_blocks(elements, BLOCK_SIZES[0]) - 1, 0).bit_length(), len(BLOCK_SIZES) - 1)


def distances(places: np.ndarray, means: np.ndarray, epsilon: float) -> np.ndarray:
  """The distance to the edges of rows that each place of a pass should keep, in the shape of `places` and `means`.

  Scale and mean of an element are sums over the same features of its position, of which neither says how large they
  are: scales end at SCALE_MIN and have a bias, means may cancel. The geometric mean of both, over the position, follows
  the errors best. Channels, the last axis, have weights of their own: those of large scales have large errors."""
  scale = SCALE_MIN * np.exp(SCALE_STEP * _bounded(places).astype(np.float64))
  rms = lambda x, axis: np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=axis, keepdims=True))
  of_position = np.sqrt(rms(scale, -1) * rms(means, -1))
  of_channel = rms(scale, tuple(range(scale.ndim - 1)))
  return np.minimum(epsilon * (1 + (OF_POSITION * of_position + OF_CHANNEL * of_channel) / scale), DISTANCE_MAX)


def choose(places: np.ndarray, wanted: np.ndarray | float) -> Grids:
  """The grids of a pass with the fewest bits: in each block the first in which all places keep the distances `wanted`.

  Where there is none in a block of any size, blocks are of the size that leaves the fewest elements in such blocks, and
  there the grid is taken in which the worst place keeps the most of its distance. `places` are those of a pass,
  float32; distances are at most DISTANCE_MAX.
  """
  places, wanted = _bounded(places).ravel(), np.broadcast_to(wanted, places.shape).ravel()
  taken, most = _taken(places, wanted), largest(places.size)
  candidates = []
  for doubled, size in enumerate(BLOCK_SIZES[:most + 1]):
    if doubled:
      taken = np.logical_or.reduceat(taken, np.arange(0, len(taken), 2))
    unsafe, choices = size * taken.all(axis=1).sum(), taken.argmin(axis=1)
    bits = _CHOICE_BITS @ np.bincount(choices, minlength=GRIDS)
    of_share = int(bits.argmin()) if len(choices) > 1 else SAFE_SHARES.index(SINGLE_SHARE)
    cost = bits[of_share] + (_HALVED_BITS[most - doubled] if most else 0) + (3 if len(choices) > 1 else 0)
    candidates.append((unsafe, cost, size, SAFE_SHARES[of_share], choices, taken))
  _, _, size, share, choices, taken = min(candidates, key=lambda candidate: candidate[:2])
  choices = choices.astype(np.int32)
  for block in np.flatnonzero(taken.all(axis=1)):
    of_block = slice(block * size, (block + 1) * size)
    shifted = places[of_block] + SHIFTS[:, None]
    choices[block] = (np.abs(shifted - np.rint(shifted)) / wanted[of_block]).min(axis=1).argmax()
  return Grids(size, share, choices)


def _taken(places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """(blocks of the smallest size, GRIDS) bool, whether a place of the block lies within its distance of an edge.

  Edges of different grids lie 1/28 apart, and a distance is below 1/56: no place is near those of two grids."""
  nearest = _NEAREST[np.minimum((GRIDS * (np.ceil(places) - places)).astype(np.int32), GRIDS - 1)]
  shifted = places + SHIFTS[nearest]
  near = np.flatnonzero(np.abs(shifted - np.rint(shifted)) <= wanted)
  taken = np.zeros((num_blocks(places.size, BLOCK_SIZES[0]), GRIDS), bool)
  taken[near // BLOCK_SIZES[0], nearest[near]] = True
  return taken


def choose_rows(places: np.ndarray | jax.Array, means: np.ndarray | jax.Array, origin: Origin,
                ) -> tuple[Grids, np.ndarray]:
  """The grids of a pass, as `choose` has them, and the rows that they make."""
  places = np.asarray(places)
  grids = choose(places, distances(places, np.asarray(means), 2.0**-origin.epsilon_exponent))
  return grids, rows(places, grids)


def choose_map(keep: np.ndarray | jax.Array, origin: Origin) -> tuple[Grids, np.ndarray]:
  """The grids of a pass for the map of its elements, of which `keep` are the log-odds, and what it keeps."""
  places = places_of_map(keep)
  grids = choose(places, 2.0**-origin.epsilon_exponent)
  return grids, kept(keep, grids)


def kept(keep: np.ndarray | jax.Array, grids: Grids) -> np.ndarray:
  """bool, in the shape of `keep`, which elements are coded: the row of a map is 0 or 1."""
  return rows(places_of_map(keep), grids) > 0


def places_of_map(keep: np.ndarray | jax.Array) -> np.ndarray:
  """Log-odds as places around 0, the one edge that there is."""
  return np.clip(np.asarray(keep) * np.float32(MAP_STEP), -MAP_PLACE_MAX, MAP_PLACE_MAX)


def rows(places: np.ndarray, grids: Grids) -> np.ndarray:
  """int32 rows of the coding table, in the shape of `places`."""
  return np.clip(np.ceil(moved(places, grids)), 0, SCALE_LEVELS - 1).astype(np.int32)


def moved(places: np.ndarray, grids: Grids) -> np.ndarray:
  """The places of a pass, moved by the grids of their blocks: edges of rows are then at integers."""
  shifts = np.repeat(SHIFTS[grids.choices], grids.size)[:places.size].reshape(places.shape)
  return _bounded(places) + shifts


def epsilon_exponent(config: CodecConfig) -> int:
  """e of the files of a model, whose epsilon is 2^-e. The error of a sum grows with the number of its terms, and most
  of the error of the first scales comes from the sums of h_s, so that narrow models need half the distance."""
  return EPSILON_EXPONENT + (max(config.hyper_synthesis_widths) <= NARROW)


def here(config: CodecConfig | None = None) -> Origin:
  """This machine, as the files that it writes name it, with the epsilon of a model."""
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
        f"{content.origin}; this is {here()} (differences beyond epsilon {content.origin.epsilon}, or altered data)")


def _bounded(places: np.ndarray) -> np.ndarray:
  """What lies beyond the last level, or is no number (data that was altered leads there), lies at the last level."""
  return np.fmin(places, np.float32(SCALE_LEVELS - 1))
