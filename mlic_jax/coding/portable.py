"""Rows of the coding table that machines agree on although their floats do not: shifted grids, one chosen a block.

A row is picked by the place t of a scale among the levels of the table (priors.scale_place). Another device or another
jax computes a t that is off in its last bits, and where t lies at the edge of a row that makes another row, after which
everything decodes to garbage. So the encoder may move the edges:

    row = clip(ceil(t + shift), 0, 63)          one shift for each block of a pass

It takes the first shift for which no t of the block lies near an edge, and the file says which. A decoder whose t are
off by less than the distance that was kept then takes the same rows. Only + and ceil touch t, in float32 on the host:
both are exact everywhere.

The distance is epsilon, and more for the small scales of a pass with large ones: rounding errors go with the largest
numbers of a sum, so within a pass they are about equally large in all scales, and t is their logarithm
(benchmarks/portability.py measures them). Only the encoder needs the distance.

A pass (1, h, w/2, Cs) is cut into blocks in C order; the last one may be short.
"""
import platform
from collections.abc import Sequence

import jax
import numpy as np

from mlic_jax.coding import bitstream
from mlic_jax.coding.bitstream import Bitstream, Origin, PortabilityError
from mlic_jax.model.scales import SCALE_LEVELS, SCALE_STEP

EPSILON_EXPONENT = 13  # epsilon = 2^-13 of the step from level to level
DISTANCE_MAX = 1 / 64  # of any scale: a place of 0 has to be safe in the grid with the smallest shift
BLOCK = 2048           # elements that share a shift; smaller blocks are safe sooner, but have more choices to write
GRIDS = 28             # shifts to choose from

# Odd multiples of 1/56, the smallest first, all within half a step: -1/56, 1/56, -3/56, ... None of them is 0, because
# most scales are SCALE_MIN itself, whose place is 0: the edge of the first row if nothing is shifted. A negative shift
# comes first as it leaves them in that row.
_GRID = np.arange(GRIDS)
SHIFTS = ((-1.0)**(_GRID + 1) * (2 * (_GRID // 2) + 1) / (2 * GRIDS)).astype(np.float32)

# Of choosing grid 0, 1, ...: geometric, for blocks that are safe in seven grids of ten.
CHOICE_PMF = 0.7 * 0.3**_GRID


def num_blocks(size: int) -> int:
  """Blocks of a pass of `size` elements."""
  return -(-size // BLOCK)


def distances(places: np.ndarray, epsilon: float) -> np.ndarray:
  """The distance to the edges of rows that each place of a pass should keep, in the shape of `places`."""
  scale = np.exp(SCALE_STEP * _bounded(places))  # over SCALE_MIN
  typical = np.sqrt(np.mean(scale**2))
  return np.minimum(epsilon * np.maximum(typical / scale, 1), DISTANCE_MAX)


def choose(places: np.ndarray, epsilon: float) -> np.ndarray:
  """The grid of each block, (blocks,) int32: the first in which all places keep their distances.

  Where there is none, the one in which the worst place keeps the most of its distance. `places` are those of a pass,
  float32; epsilon is at most DISTANCE_MAX.
  """
  shape = num_blocks(places.size), BLOCK
  blocks, wanted = np.zeros(shape, np.float32), np.full(shape, epsilon)  # a place of 0, behind the end, is always safe
  blocks.ravel()[:places.size] = _bounded(places).ravel()
  wanted.ravel()[:places.size] = distances(places, epsilon).ravel()
  choices, best = np.zeros(len(blocks), np.int32), np.full(len(blocks), -1.0)
  left = np.arange(len(blocks))
  for grid, shift in enumerate(SHIFTS):
    shifted = blocks[left] + shift
    kept = (np.abs(shifted - np.rint(shifted)) / wanted[left]).min(axis=1)
    better = kept > best[left]
    choices[left[better]], best[left[better]] = grid, kept[better]
    left = left[kept <= 1]
    if not left.size:
      break
  return choices


def choose_rows(places: np.ndarray | jax.Array, origin: Origin) -> tuple[np.ndarray, np.ndarray]:
  """The grids of a pass, as `choose` has them, and the rows that they make."""
  places = np.asarray(places)
  choices = choose(places, 2.0**-origin.epsilon_exponent)
  return choices, rows(places, choices)


def rows(places: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """int32 rows of the coding table, in the shape of `places`; `choices` are those of its blocks."""
  shifts = np.repeat(SHIFTS[choices], BLOCK)[:places.size].reshape(places.shape)
  return np.clip(np.ceil(_bounded(places) + shifts), 0, SCALE_LEVELS - 1).astype(np.int32)


def here() -> Origin:
  """This machine, as the files that it writes name it."""
  known = lambda names, name: name if name in names else names[0]
  machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
  return Origin(EPSILON_EXPONENT, known(bitstream.PLATFORMS, jax.default_backend()),
                known(bitstream.MACHINES, machine), jax.__version_info__[:3])


def check_symbols(content: Bitstream, k: int, symbols: Sequence[np.ndarray]) -> None:
  """PortabilityError unless the anchors and non-anchors of slice k are those that were encoded."""
  if bitstream.symbol_checksum(*symbols) != content.symbol_checksums[k]:
    raise PortabilityError(
        f"slice {k + 1} of {content.num_slices} decodes to other symbols than were encoded: the file was written on "
        f"{content.origin}; this is {here()} (differences beyond epsilon {content.origin.epsilon}, or altered data)")


def _bounded(places: np.ndarray) -> np.ndarray:
  """What lies beyond the last level, or is no number (data that was altered leads there), lies at the last level."""
  return np.fmin(places, np.float32(SCALE_LEVELS - 1))
