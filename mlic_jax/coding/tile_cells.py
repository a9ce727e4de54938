"""Cells: tiles, or parts of tiles, whose layers at high resolution are computed at a time.

These layers need most of the memory of encoder and decoder. Halving a tile for them costs a second halo, and nothing in
the file, which has the y of whole tiles.
"""
from mlic_jax.coding.tile_grid import ROWS, TileGrid
from mlic_jax.config import CodecConfig
from mlic_jax.model import transforms

FLOATS = 2**25    # maximum size of the widest layer of a cell


def analysis_cells(grid: TileGrid, factor: int, config: CodecConfig) -> TileGrid:
  """Returns the cells of the first stage of g_a, in positions `factor` pixels apart: the height of tiles is halved.

  `grid` has the tiles in pixels."""
  cells = grid.coarser(factor)
  while _floats(cells, factor, config) > FLOATS and cells.tile_height % (2 * ROWS) == 0:
    cells = cells._replace(tile_height=cells.tile_height // 2)
  return cells


def synthesis_cells(grid: TileGrid, stride: int, config: CodecConfig) -> TileGrid:
  """Returns the cells of g_s in positions of y, `stride` pixels apart: the width of tiles is halved, because half of
  the height is often no multiple of ROWS. `grid` has the tiles in pixels."""
  cells = grid.coarser(stride)
  while _floats(cells, stride, config) > FLOATS and cells.tile_width % 2 == 0:
    cells = cells._replace(tile_width=cells.tile_width // 2)
  return cells


def _floats(cells: TileGrid, factor: int, config: CodecConfig) -> float:
  per_pixel = transforms.find(config.transforms).activation_floats_per_pixel(config)
  return per_pixel * factor**2 * cells.tile_height * cells.tile_width
