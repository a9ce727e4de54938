"""TiledAnalysis: y and z of the tiles of one image, in order, from windows of pixels or of kept features.

Features of the first stage of g_a (analysis_stages.py) are computed for the cells of an image, which are tiles or parts
of tiles, when the first window needs them. They are freed, row by row, after the last window that needs them; so are
the pixels of a file that is read in strips.
"""
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mlic_jax.coding import tile_functions
from mlic_jax.coding.analysis_stages import Stages
from mlic_jax.coding.pixel_rows import PixelRows
from mlic_jax.coding.receptive_field import Halos
from mlic_jax.coding.tile_batches import batches, filled
from mlic_jax.coding.tile_cells import analysis_cells
from mlic_jax.coding.tile_devices import ahead
from mlic_jax.coding.tile_grid import Box, TileGrid
from mlic_jax.data.image_strips import ImageStrips
from mlic_jax.runtime.shape_cache import trim_memory


class TiledAnalysis:
  """The analysis of one image.

  Args:
    models: the codec module and its variables, for each device that computes batches.
    halos: those of the module.
    stages: the stages of g_a; None for one stage.
    image: the image, (H, W, 3) uint8, or a file that is read in strips.
    grid: its tiles, in pixels.
    stride: pixels per position of y.
    quality: the quality of a variable-rate model.
    batch: the number of tiles or cells that a device computes at a time.
  """

  def __init__(self, models: Sequence[tuple], halos: Halos, stages: Stages | None, image: np.ndarray | ImageStrips,
               grid: TileGrid, stride: int, quality: float | None, batch: int):
    self._models, self._pixels, self._quality, self._batch = models, PixelRows(image), quality, batch
    self._positions, self._stride = grid.coarser(stride), stride
    self._halo = stages.second if stages else halos.analysis
    self._cells = Cells(models, stages, self._pixels, grid, quality, batch) if stages else None

  def __iter__(self) -> Iterator[tuple[Sequence[int], jax.Array, jax.Array]]:
    """Yields the numbers of a batch of tiles, and their y (B, h, w, M) and z (B, h/4, w/4, N), of each device in turn.

    While the batch of one device is used, the other devices compute theirs."""
    for turn in batches(batches(range(self._positions.num_tiles), self._batch), len(self._models)):
      windows = [[self._positions.window(number, self._halo) for number in numbers] for numbers in turn]
      if self._cells:
        self._cells.compute([self._in_features(each) for each in windows])
      yield from [(numbers, *self._dispatch(model, numbers, each))
                  for model, numbers, each in zip(self._models, turn, windows)]
      if self._cells:
        self._cells.forget(*self._rest(turn[-1][-1]))
      elif turn[-1][-1] + 1 < self._positions.num_tiles:
        self._pixels.forget(self._stride * self._positions.window(turn[-1][-1] + 1, self._halo).top)

  def _dispatch(self, model: tuple, numbers: Sequence[int], windows: Sequence[Box]) -> tuple[jax.Array, jax.Array]:
    boxes = [self._positions.box(number) for number in numbers]
    if self._cells:
      inputs, stages = self._cells.read(self._in_features(windows)), self._cells.stages
    else:
      inputs, stages = np.stack([self._pixels.cut(window.times(self._stride)) for window in windows]), None
    arrays = filled([inputs, corners(boxes, windows)], self._batch)
    return tile_functions.analyze_window(*model, *arrays, ((boxes[0].height, boxes[0].width), stages), self._quality)

  def _in_features(self, windows: Sequence[Box]) -> list[Box]:
    """Returns windows of positions of y in positions of features."""
    assert self._cells is not None
    return [window.times(self._stride // self._cells.stages.factor) for window in windows]

  def _rest(self, last: int) -> tuple[list[Box], int]:
    """Returns the windows of features in the row of tiles that are still to come, and the first row of all others."""
    assert self._cells is not None
    finer = self._stride // self._cells.stages.factor
    window = lambda number: self._positions.window(number, self._halo).times(finer)
    end = (last // self._positions.columns + 1) * self._positions.columns
    ahead = [window(number) for number in range(last + 1, end)]
    return ahead, window(end).top if end < self._positions.num_tiles else finer * self._positions.extent.bottom


class Cells:
  """The features of the first stage of g_a, as far as they are needed."""

  def __init__(self, models: Sequence[tuple], stages: Stages, pixels: PixelRows, grid: TileGrid,
               quality: float | None, batch: int):
    self._models, self.stages, self._pixels = models, stages, pixels
    self._grid, self._quality, self._batch = analysis_cells(grid, stages.factor, models[0][0].config), quality, batch
    self._kept: dict[int, tuple[Box, np.ndarray]] = {}   # where they are, and features (rows, columns, C)
    self._missing = set(range(self._grid.num_tiles))     # cells that were not yet computed

  def compute(self, batches_of_windows: Sequence[Sequence[Box]]) -> None:
    """Computes the features that batches of windows need and that are missing, on all devices."""
    missing, known = list[Sequence[int]](), set(self._kept)
    for windows in batches_of_windows:
      needed = {number for window in windows for number in self._grid.touching(window)}
      missing += batches(sorted(needed.difference(known)), self._batch)
      known |= needed
    dispatched = map(self._dispatch, itertools.cycle(self._models), missing)
    for numbers, features in zip(missing, ahead(dispatched, len(self._models))):
      for number, each in zip(numbers, np.asarray(features)):
        self._kept[number] = self._grid.box(number), each
      self._missing.difference_update(numbers)
    if self._missing:
      self._pixels.forget(self.stages.factor * self._grid.window(min(self._missing), self.stages.first).top)

  def read(self, windows: Sequence[Box]) -> np.ndarray:
    """Returns the features of windows of one size, (B, H, W, C), after `compute`."""
    features = np.empty((len(windows), windows[0].height, windows[0].width, self.stages.channels), np.float32)
    for part, window in zip(features, windows):
      for number in self._grid.touching(window):
        box, kept = self._kept[number]
        part[box.within(window).slices] = kept[window.within(box).slices]
    return features

  def forget(self, ahead: Sequence[Box], first_row: int) -> None:
    """Frees what is neither in one of the windows `ahead` nor in a row from `first_row` on."""
    for number, (box, kept) in list(self._kept.items()):
      if box.top < first_row and not any(box.touches(window) for window in ahead):
        del self._kept[number]
        if first_row < box.bottom:
          self._kept[number] = box._replace(top=first_row), kept[first_row - box.top:].copy()

  @property
  def num_bytes(self) -> int:
    """Memory of the features."""
    return sum(kept.nbytes for _, kept in self._kept.values())

  def _dispatch(self, model: tuple, numbers: Sequence[int]) -> jax.Array:
    trim_memory()                                        # here the encoder needs most memory
    boxes = [self._grid.box(number) for number in numbers]
    windows = [self._grid.window(number, self.stages.first) for number in numbers]
    pixels = np.stack([self._pixels.cut(window.times(self.stages.factor)) for window in windows])
    arrays, size = filled([pixels, corners(boxes, windows)], self._batch), (boxes[0].height, boxes[0].width)
    return tile_functions.features_of_window(*model, *arrays, (size, self.stages), self._quality)


def corners(boxes: Sequence[Box], windows: Sequence[Box]) -> np.ndarray:
  """Returns row and column of boxes in their windows, int32 (B, 2)."""
  return np.array([box.within(window)[:2] for box, window in zip(boxes, windows)], np.int32)
