"""Rows of the coding table that machines agree on although their floats do not: shifted grids, one chosen a block.

A row is picked by the place t of a scale among the levels of the table (priors.scale_place). Another device or another
jax computes a t that is off in its last bits, and where t lies at the edge of a row that makes another row, after which
everything decodes to garbage. So the encoder may move the edges:

    row = clip(ceil(t + shift), 0, 63)          one shift for each block of a pass

It takes the first shift for which no t of the block lies within epsilon of an edge, and the file says which. A decoder
whose t are off by less than epsilon then takes the same rows. Only + and ceil touch t, in float32 on the host: both
are exact everywhere.

A pass (1, h, w/2, Cs) is cut into blocks in C order; the last one may be short.
"""
import numpy as np

from mlic_jax.priors import SCALE_LEVELS

EPSILON_EXPONENT = 12  # epsilon = 2^-12 of the step from level to level
BLOCK = 4096           # elements that share a shift; smaller blocks are safe sooner, but have more choices to write
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


def choose(places: np.ndarray, epsilon: float) -> np.ndarray:
  """The grid of each block, (blocks,) int32: the first in which no place lies within epsilon of the edge of a row.

  Where no grid is safe, the one whose nearest edge is farthest. `places` are float32, of any shape; epsilon is below
  1 / (2 GRIDS).
  """
  blocks = np.zeros((num_blocks(places.size), BLOCK), np.float32)  # a place of 0, behind the end, is safe in every grid
  blocks.ravel()[:places.size] = _bounded(places).ravel()
  choices, farthest = np.zeros(len(blocks), np.int32), np.full(len(blocks), -1, np.float32)
  left = np.arange(len(blocks))
  for grid, shift in enumerate(SHIFTS):
    shifted = blocks[left] + shift
    distance = np.abs(shifted - np.rint(shifted)).min(axis=1)
    better = distance > farthest[left]
    choices[left[better]], farthest[left[better]] = grid, distance[better]
    left = left[distance <= epsilon]
    if not left.size:
      break
  return choices


def rows(places: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """int32 rows of the coding table, in the shape of `places`; `choices` are those of its blocks."""
  shifts = np.repeat(SHIFTS[choices], BLOCK)[:places.size].reshape(places.shape)
  return np.clip(np.ceil(_bounded(places) + shifts), 0, SCALE_LEVELS - 1).astype(np.int32)


def _bounded(places: np.ndarray) -> np.ndarray:
  """What lies beyond the last level, or is no number (data that was altered leads there), lies at the last level."""
  return np.fmin(places, np.float32(SCALE_LEVELS - 1))
