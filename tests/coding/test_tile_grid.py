"""Tests of tile grids: tiles cover an image once, and a window has its tile and halo, as far as the image goes."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_jax.coding.tile_grid import Box, TileGrid, tile_sides

GRIDS = st.builds(TileGrid, *[st.integers(1, 300)] * 2, *[st.integers(20, 80)] * 2)


@settings(max_examples=50, deadline=None)
@given(GRIDS)
def test_tiles_cover_the_extended_image_once_and_in_rows(grid):
  covered = np.zeros((grid.extent.bottom, grid.extent.right), int)
  boxes = [grid.box(number) for number in range(grid.num_tiles)]
  for box in boxes:
    covered[box.slices] += 1
  assert (covered == 1).all() and boxes == sorted(boxes)
  assert grid.height <= grid.extent.bottom < grid.height + grid.tile_height
  assert grid.width <= grid.extent.right < grid.width + grid.tile_width


@settings(max_examples=50, deadline=None)
@given(GRIDS, st.integers(0, 100))
def test_windows_have_one_size_and_end_at_the_halo_or_where_the_image_does(grid, halo):
  extent = grid.extent
  for number in range(grid.num_tiles):
    box, window = grid.box(number), grid.window(number, halo)
    assert (window.height, window.width) == grid.window_size(halo)
    assert window.top >= 0 and window.left >= 0 and window.bottom <= extent.bottom and window.right <= extent.right
    assert window.top == 0 or window.top <= box.top - halo
    assert window.left == 0 or window.left <= box.left - halo
    assert window.bottom == extent.bottom or window.bottom >= box.bottom + halo
    assert window.right == extent.right or window.right >= box.right + halo


@settings(max_examples=50, deadline=None)
@given(GRIDS, st.data())
def test_the_tiles_of_an_area_are_those_with_a_pixel_in_it(grid, data):
  top, bottom = sorted(data.draw(st.lists(st.integers(0, grid.extent.bottom), min_size=2, max_size=2, unique=True)))
  left, right = sorted(data.draw(st.lists(st.integers(0, grid.extent.right), min_size=2, max_size=2, unique=True)))
  area = Box(top, left, bottom, right)
  expected = [n for n in range(grid.num_tiles) if grid.box(n).touches(area)]
  assert grid.touching(area) == expected
  rows = list(grid.rows_of_tiles(area))
  assert [n for row in rows for n in row] == expected
  assert all(len({n // grid.columns for n in row}) == 1 for row in rows)
  parts = [grid.box(n).within(area) for n in expected]
  assert sum(part.height * part.width for part in parts) == area.height * area.width


@given(st.integers(1, 9000), st.sampled_from([64, 256, 1024]))
def test_tiles_are_as_few_as_they_can_be_and_then_as_small(side, tile):
  chosen, _ = tile_sides(side, 64, tile, 64)
  longest = {64: 64, 256: 256, 1024: 1088}[tile]         # 1/16 more, where that is a multiple of 64
  assert chosen <= longest and chosen % 64 == 0
  count = -(-side // longest)
  assert -(-side // chosen) <= count and count * (chosen - 64) < side


def test_a_4k_image_is_cut_evenly_and_a_small_one_is_a_tile():
  assert tile_sides(2160, 3840, 1024, 64) == (1088, 960)
  assert tile_sides(4320, 7680, 1024, 64) == (1088, 960)
  assert tile_sides(900, 65, 1024, 64) == (960, 128)
