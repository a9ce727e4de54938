"""TileGrid: the tiles of an image, which have one shape, and the windows that the transforms of a tile read.

         0         t         2t        3t     One axis: n tiles of t positions. The window of a tile is the tile and
         |---------|---------|---------|      its halo on each side, of one length everywhere: at the ends of the axis
             [.....|---------|.....]          it is moved inside, because there the zero padding of the convolutions
         [---------|...........]              is part of the result for the whole image. Of two tiles, a window has
                                              its halo on one side.
Transforms of windows therefore give, inside the tiles, what the transform of the whole image gives there.
"""
import math
from collections.abc import Iterator
from typing import NamedTuple

ROWS = 4      # the height of windows is a multiple of this, for the faster convolutions of CPUs (kernels/winograd.py)
SLACK = 16    # a side may be longer by this fraction than asked for, so that 2160 rows are two tiles of 1088


class TilingError(ValueError):
  """Tiles that an image cannot be coded in, or a region that it does not have; one line."""


class Box(NamedTuple):
  """A rectangle of pixels or positions of y: rows top to bottom - 1, columns left to right - 1."""
  top: int
  left: int
  bottom: int
  right: int

  @property
  def height(self) -> int:
    return self.bottom - self.top

  @property
  def width(self) -> int:
    return self.right - self.left

  @property
  def slices(self) -> tuple[slice, slice]:
    """The index of the box in an array (H, W, ...)."""
    return slice(self.top, self.bottom), slice(self.left, self.right)

  def times(self, factor: int) -> "Box":
    """Returns the same box in a grid that is `factor` times finer."""
    return Box(*(factor * side for side in self))

  def within(self, outer: "Box") -> "Box":
    """Returns the part of the box inside `outer`, possibly empty, in coordinates relative to the corner of `outer`."""
    top, left = max(self.top, outer.top), max(self.left, outer.left)
    bottom, right = max(min(self.bottom, outer.bottom), top), max(min(self.right, outer.right), left)
    return Box(top - outer.top, left - outer.left, bottom - outer.top, right - outer.left)

  def check_inside(self, height: int, width: int) -> None:
    """Raises TilingError for a box that is empty or not inside an image of this size."""
    if not (0 <= self.top < self.bottom <= height and 0 <= self.left < self.right <= width):
      raise TilingError(f"the region has {self.width}x{self.height} pixels at {self.left},{self.top}; the image has "
                        f"{width}x{height}")

  def shared(self, other: "Box") -> "Box":
    """Returns the part of the box that is in `other`, in the same coordinates."""
    part = self.within(other)
    return Box(part.top + other.top, part.left + other.left, part.bottom + other.top, part.right + other.left)

  def touches(self, other: "Box") -> bool:
    """Whether the boxes have a pixel in common."""
    part = self.within(other)
    return part.height > 0 and part.width > 0


class TileGrid(NamedTuple):
  """The tiles of an image, numbered row by row. All sizes are in pixels, or all are in positions of y.

  The last row and column may reach beyond the image."""
  height: int        # of the image
  width: int
  tile_height: int
  tile_width: int

  @property
  def rows(self) -> int:
    return -(-self.height // self.tile_height)

  @property
  def columns(self) -> int:
    return -(-self.width // self.tile_width)

  @property
  def num_tiles(self) -> int:
    return self.rows * self.columns

  @property
  def extent(self) -> Box:
    """The box of all tiles: the image, extended to whole tiles."""
    return Box(0, 0, self.rows * self.tile_height, self.columns * self.tile_width)

  def box(self, number: int) -> Box:
    """Returns the box of a tile."""
    row, column = divmod(number, self.columns)
    top, left = row * self.tile_height, column * self.tile_width
    return Box(top, left, top + self.tile_height, left + self.tile_width)

  def window_size(self, halo: int) -> tuple[int, int]:
    """Returns height and width of all windows."""
    height, width = (tile + min(count - 1, 2) * halo for tile, count in (
        (self.tile_height, self.rows), (self.tile_width, self.columns)))
    return min(-(-height // ROWS) * ROWS, self.extent.bottom), min(width, self.extent.right)

  def window(self, number: int, halo: int) -> Box:
    """Returns the tile with at least `halo` on each side, or as much as `extent` has."""
    box, extent, (height, width) = self.box(number), self.extent, self.window_size(halo)
    top, left = _start(box.top, halo, height, extent.bottom), _start(box.left, halo, width, extent.right)
    return Box(top, left, top + height, left + width)

  def touching(self, area: Box) -> list[int]:
    """Returns the numbers of the tiles that touch `area`, in order; `area` is inside `extent`."""
    rows = range(area.top // self.tile_height, -(-area.bottom // self.tile_height))
    columns = range(area.left // self.tile_width, -(-area.right // self.tile_width))
    return [row * self.columns + column for row in rows for column in columns]

  def coarser(self, stride: int) -> "TileGrid":
    """Returns the grid in positions of y, which are `stride` pixels apart; its image is `extent`."""
    sides = self.extent.bottom, self.extent.right, self.tile_height, self.tile_width
    return TileGrid(*(side // stride for side in sides))

  def rows_of_tiles(self, area: Box) -> Iterator[list[int]]:
    """Yields the numbers of the tiles that touch `area`, row by row."""
    numbers, columns = self.touching(area), len(range(area.left // self.tile_width, -(-area.right // self.tile_width)))
    for start in range(0, len(numbers), columns):
      yield numbers[start:start + columns]


def tile_sides(height: int, width: int, tile: int, multiple: int) -> tuple[int, int]:
  """Height and width of the tiles of an image: along each axis as few tiles as there are of at most `tile` pixels or
  1/SLACK more, and then as small ones as that many can be, in multiples of `multiple`. The last ones so reach little
  beyond the image."""
  longest = (tile + tile // SLACK) // multiple * multiple
  return _tile_side(height, longest, multiple), _tile_side(width, longest, multiple)


def _tile_side(side: int, longest: int, multiple: int) -> int:
  return math.ceil(side / math.ceil(side / longest) / multiple) * multiple


def _start(start: int, halo: int, length: int, end: int) -> int:
  return min(max(start - halo, 0), end - length)
