"""TiledCoder: codes images of any size tile by tile, in the memory for one tile.

    encoder   window of pixels -> g_a -> y of the tile -> h_a, passes, range coder -> chunks of the tile
    decoder   chunks of a tile -> passes -> y_hat of the tile;  y_hat of a window -> g_s -> pixels of the tile

h_a, h_s and the slices of a tile read only the tile, so a tile decodes without the others. g_a and g_s read the window
around it, so y and the reconstruction are those of the whole image up to rounding, without seams. This is the coding in
blocks of Kim et al. ("Block-based Learned Image Compression without Blocking Artifacts", CVPR 2026).
"""
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mlic_jax.coding import (
  analysis_stages,
  bitstream,
  layer_crops,
  tile_devices,
  tile_functions,
  tile_measurements,
  tiled_format,
)
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.latent_coder import CodedLatents, Job, LatentCoder
from mlic_jax.coding.latents import Latents
from mlic_jax.coding.layer_crops import crops_of
from mlic_jax.coding.memory_estimate import check_memory, is_enough_memory
from mlic_jax.coding.receptive_field import Halos, halos
from mlic_jax.coding.tile_batches import batches, filled
from mlic_jax.coding.tile_cells import synthesis_cells
from mlic_jax.coding.tile_grid import Box, TileGrid, TilingError, tile_sides
from mlic_jax.coding.tile_measurements import integers
from mlic_jax.coding.tiled_analysis import TiledAnalysis
from mlic_jax.data.image_strips import ImageStrips
from mlic_jax.model import transforms
from mlic_jax.model.mlic import side_multiple
from mlic_jax.runtime.shape_cache import trim_memory

TileProgress = Callable[[int, int], None]   # called with the number of finished tiles and of all tiles
SILENT: TileProgress = lambda done, total: None
AUTOMATIC_SIDES = (1024, 512, 256)          # pixels


class TiledEncoded(NamedTuple):
  """A tiled file, with its estimated bits and its reconstruction."""
  blob: bytes
  bits: float                             # by the likelihoods of the model
  reconstruct: Callable[[], np.ndarray]   # returns the decoded image (H, W, 3) uint8, on this machine bit for bit


class TiledCoder:
  """Codes images in tiles with the entropy coder of one model.

  Each device computes `batch` tiles at a time, which fills an accelerator. Portable files decode with any batch, on any
  number of devices; others are coded tile by tile on one. TilingError if the transforms of the model cannot be computed
  tile by tile (receptive_field.py).
  """

  def __init__(self, coder: LatentCoder, batch: int = 1):
    self.coder, self.batch, self._apply = coder, batch, (coder.module, coder.variables)
    self._coders: dict[jax.Device | None, LatentCoder] = {None: coder}
    self._stride, self._multiple = transforms.find(coder.config.transforms).STRIDE, side_multiple(coder.config)
    self._cached = functools.partial(tile_measurements.cached, config=coder.config, fingerprint=coder.fingerprint)
    self.halos = self._cached("halos", restore=lambda found: Halos(*integers(found, 3)),
                              measure=lambda: halos(*self._apply))

  @functools.cached_property
  def _layers(self) -> tuple[layer_crops.Layer, ...]:
    return self._cached(
        "layers", restore=lambda found: tuple(layer_crops.Layer(*integers(each, 2)) for each in found or ()),
        measure=lambda: layer_crops.measure(*self._apply, self.halos, self._stride))

  @functools.cached_property
  def stages(self) -> analysis_stages.Stages | None:
    """The stages in which g_a is computed; None for one stage."""
    return self._cached(
        "stages", restore=lambda found: None if found is None else analysis_stages.Stages(*integers(found, 5)),
        measure=lambda: analysis_stages.measure(*self._apply, self.halos, self._stride))

  # --- encoding -------------------------------------------------------------------------

  def grid(self, height: int, width: int, tile: int) -> TileGrid:
    """Returns the tiles of an image, in pixels. TilingError unless `tile` is a multiple of the padding of the model."""
    if tile < 1 or tile % self._multiple:
      raise TilingError(f"tile={tile}; wanted a multiple of {self._multiple} pixels for {self.coder.name}")
    return TileGrid(height, width, *tile_sides(height, width, tile, self._multiple))

  def grid_of(self, image: np.ndarray, tile: int) -> TileGrid:
    """Returns the tiles of an image (H, W, 3)."""
    return self.grid(image.shape[0], image.shape[1], tile)

  def inside(self, grid: TileGrid, number: int) -> np.ndarray | None:
    """Returns which positions of y of a tile are coded, (h, w) bool; None if all are.

    They are those of the image, padded as without tiles."""
    box = grid.box(number)
    rows, columns = (min(-(-side // self._multiple) * self._multiple - start, tile) // self._stride
                     for side, start, tile in zip(grid[:2], box[:2], grid[2:]))
    h, w = (side // self._stride for side in grid[2:])
    if (rows, columns) == (h, w):
      return None
    return (np.arange(h)[:, None] < rows) & (np.arange(w) < columns)

  def latents(self, image: np.ndarray | ImageStrips, quality: float | None, tile: int, batch: int = 1,
              coders: Sequence[LatentCoder] = ()) -> Iterator[list[Latents]]:
    """Yields batches of the latents of the tiles of an image (H, W, 3) uint8, like those of images of a tile's size.

    The batches are on the devices of `coders` in turn, by default on that of `self.coder`. Errors as in
    LatentCoder.analyze, with the memory for a window, and ImageError for a damaged file that is read in strips."""
    height, width = image.shape[:2]
    bitstream.check_size(height, width, pixels_max=2**64)
    grid, quality = self.grid(height, width, tile), self.coder.choose_quality(quality)
    self.check_memory(grid)
    models = [(each.module, each.variables) for each in coders or [self.coder]]
    for numbers, y, z in TiledAnalysis(models, self.halos, self.stages, image, grid, self._stride, quality, batch):
      yield [Latents(y[i:i + 1], z[i:i + 1], grid.tile_height, grid.tile_width, quality) for i in range(len(numbers))]

  def encode(self, image: np.ndarray | ImageStrips, quality: float | None, options: EncodeOptions, tile: int,
             icc_profile: bytes | None = None, progress: TileProgress = SILENT,
             inspect: Callable[[LatentCoder, CodedLatents], None] = lambda coder, coded: None) -> bytes:
    """Encodes an image (H, W, 3) uint8, or a file that is read in strips, and returns the file.

    `inspect` is called with every tile and its coder. Errors as in `latents`, and LatentError."""
    height, width = image.shape[:2]
    grid, tiles, numbers = self.grid(height, width, tile), list[bytes](), itertools.count()
    head, header = b"", None
    coders, batch = self.coders(grid, options.portable)
    for turn in batches(self.latents(image, quality, tile, batch, coders), len(coders)):
      jobs = [[coder.encoding(each, options, self.inside(grid, next(numbers))) for each in latents]
              for coder, latents in zip(coders, turn)]
      for coder, results in zip(coders, self.run_jobs(coders, jobs, batch)):
        for coded in results:
          if header is None:
            header = coded.content._replace(height=height, width=width, tile=(grid.tile_height, grid.tile_width),
                                            icc_profile=icc_profile, chunks=(), symbol_checksums=())
            head = bitstream.pack_header(header)
          tiles.append(tiled_format.pack_tile(head, len(tiles), coded.content))
          inspect(coder, coded)
          progress(len(tiles), grid.num_tiles)
    assert header is not None  # an image has at least one tile
    return tiled_format.write(header, tiles)

  def encode_with_bits(self, image: np.ndarray, quality: float | None, options: EncodeOptions, tile: int,
                       icc_profile: bytes | None = None, progress: TileProgress = SILENT) -> TiledEncoded:
    """Encodes an image and estimates its bits. It holds y_hat of all tiles for the reconstruction."""
    bits, decoded = list[float](), dict[int, np.ndarray]()

    def inspect(coder, coded):
      bits.extend(each.sum(dtype=np.float64) for each in coder.bits(coded.z_symbols, coded.passes))
      decoded[len(decoded)] = y_hat_of(coder, coded.last_pass)

    blob, grid = self.encode(image, quality, options, tile, icc_profile, progress, inspect), self.grid_of(image, tile)
    quality = self.coder.choose_quality(quality)
    return TiledEncoded(blob, float(sum(bits)), lambda: self.synthesize(grid, quality, decoded))

  def estimate(self, image: np.ndarray, quality: float | None, options: EncodeOptions,
               tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the bits of y (h, w, M) and z (h/4, w/4, N) over all tiles, and the decoded image (H, W, 3) uint8.

    The bits are those of the likelihoods of the model, without range coding."""
    grid, decoded, bits = self.grid_of(image, tile), dict[int, np.ndarray](), []
    for number, (latents,) in enumerate(self.latents(image, quality, tile)):
      z_symbols, passes, last_pass = self.coder.run_encoder(latents, options, self.inside(grid, number))
      bits.append(self.coder.bits(z_symbols, passes))
      decoded[number] = y_hat_of(self.coder, last_pass)
    y_bits, z_bits = (np.concatenate([np.concatenate(each[i:i + grid.columns], 1)
                                      for i in range(0, grid.num_tiles, grid.columns)]) for each in zip(*bits))
    return y_bits, z_bits, self.synthesize(grid, self.coder.choose_quality(quality), decoded)

  # --- batches and devices --------------------------------------------------------------

  def coders(self, grid: TileGrid, portable: bool) -> tuple[list[LatentCoder], int]:
    """Returns a coder on each device that computes tiles of a file, and the number of tiles that it computes at a time.

    It is the same number on any number of devices, because the floats of a tile depend on it."""
    batch = min(self.batch, grid.num_tiles) if portable else 1
    devices = tile_devices.devices(-(-grid.num_tiles // batch) if portable else 1)
    for device in devices:
      if device is not None and device not in self._coders:
        self._coders[device] = self.coder.on_device(device)
    return [self._coders[device] for device in devices], batch

  def run_jobs(self, coders: Sequence[LatentCoder], jobs: Sequence[list[Job]], batch: int) -> list[list]:
    """Runs at most `batch` jobs on the device of each coder, and returns their results.

    The functions are compiled for a whole batch, so the last job is repeated where there are fewer."""
    idle = lambda k, anchors, positions, prior: np.zeros(positions.shape, np.int32)
    runs = []
    for coder, some in zip(coders, jobs):
      missing = [Job(some[-1].z_symbols, idle, lambda last_pass: None)] * (batch - len(some))
      runs.append(coder.running([*some, *missing]))
    return [results[:len(some)] for results, some in zip(tile_devices.in_turns(runs), jobs)]

  # --- synthesis ------------------------------------------------------------------------

  def synthesize(self, grid: TileGrid, quality: float | None, y_hat: Mapping[int, np.ndarray]) -> np.ndarray:
    """Computes the image (H, W, 3) uint8 from y_hat of all tiles by number."""
    image = np.empty((grid.extent.bottom, grid.extent.right, 3), np.uint8)
    boxes = {number: grid.box(number) for number in range(grid.num_tiles)}
    for box, pixels in zip(boxes.values(), self.synthesize_tiles(grid, [boxes], quality, y_hat.__getitem__)):
      image[box.slices] = pixels
    return image[:grid.height, :grid.width]

  def synthesize_tiles(self, grid: TileGrid, rows: Sequence[Mapping[int, Box]], quality: float | None,
                       y_hat: Callable[[int], np.ndarray | None], batch: int = 1,
                       coders: Sequence[LatentCoder] = ()) -> Iterator[np.ndarray]:
    """Yields the pixels of tiles, or of parts of them, uint8, in their order.

    Each of `rows` maps numbers of tiles to their boxes in pixels, and no batch has tiles of two rows. Tiles are
    synthesized in cells, `batch` at a time on the device of each of `coders`, by default that of `self.coder`. `y_hat`
    returns y_hat of a tile, or None for a missing tile; it is called for the tiles of `tiles_seen`. The nearest
    position of a tile replaces y_hat of a missing neighbor; y_hat is zero in a tile that is missing itself."""
    cells = synthesis_cells(grid, self._stride, self.coder.config)
    jobs = [[job for number, part in parts.items() for job in self._cells_of_part(grid, cells, number, part)]
            for parts in rows]
    coders, groups = coders or [self.coder], [group for row in jobs for group in batches(row, batch)]
    right, pixels = {number: part.right for parts in rows for number, part in parts.items()}, list[np.ndarray]()

    def dispatch(coder, some):
      windows = np.stack([self._window_of_y_hat(grid, cells, tile, cell, part, y_hat) for tile, cell, part in some])
      crops = [crops_of(cells, cell, self.halos.synthesis, self._layers, self._stride) for _, cell, _ in some]
      windows, corners = filled([windows, np.stack([each.corners for each in crops])], batch)
      trim_memory()                                      # here the decoder needs most memory
      return tile_functions.synthesize_tiles(coder.module, coder.variables, windows, quality, crops[0].sizes, corners)

    dispatched = map(dispatch, itertools.cycle(coders), groups)
    for some, found in zip(groups, tile_devices.ahead(dispatched, len(coders))):
      for each, (tile, cell, area) in zip(np.asarray(found), some):
        pixels.append(each[area.within(cells.box(cell).times(self._stride)).slices])
        if area.right == right[tile]:                    # the last cell of the part of the tile
          yield np.concatenate(pixels, axis=1)
          pixels = []

  def _cells_of_part(self, grid: TileGrid, cells: TileGrid, number: int, part: Box) -> list[tuple[int, int, Box]]:
    """Returns for each cell of a part of a tile: the tile, the cell, and the part's box in the cell, in pixels."""
    tile = grid.coarser(self._stride).box(number)
    found = [(cell, cells.box(cell).times(self._stride)) for cell in cells.touching(tile)]
    return [(number, cell, box.shared(part)) for cell, box in found if box.touches(part)]

  def _window_of_y_hat(self, grid: TileGrid, cells: TileGrid, number: int, cell: int, part: Box,
                       y_hat: Callable[[int], np.ndarray | None]) -> np.ndarray:
    positions = grid.coarser(self._stride)
    tile, window = positions.box(number), cells.window(cell, self.halos.synthesis)
    padded = np.zeros((window.height, window.width, self.coder.config.M), np.float32)
    own = y_hat(number)
    for other in self.tiles_seen(grid, number, part):
      place, found = positions.box(other), own if other == number else y_hat(other)
      target = place.within(window)
      if found is not None:
        padded[target.slices] = found[window.within(place).slices]
      elif own is not None:
        rows = np.clip(np.arange(target.top, target.bottom) + window.top - tile.top, 0, tile.height - 1)
        columns = np.clip(np.arange(target.left, target.right) + window.left - tile.left, 0, tile.width - 1)
        padded[target.slices] = own[rows[:, None], columns]
    return padded

  def tiles_seen(self, grid: TileGrid, number: int, part: Box) -> list[int]:
    """Returns the tiles that the pixels of a part of a tile depend on."""
    positions, halo, stride = grid.coarser(self._stride), self.halos.synthesis, self._stride
    seen = Box(part.top // stride - halo, part.left // stride - halo, -(-part.bottom // stride) + halo,
               -(-part.right // stride) + halo)
    near = positions.touching(positions.window(number, halo))
    return [other for other in near if positions.box(other).touches(seen)]

  def first_row_of_window(self, grid: TileGrid, row: int) -> int:
    """Returns the first row of tiles that the synthesis of a row of tiles reads."""
    positions = grid.coarser(self._stride)
    return positions.window(row * grid.columns, self.halos.synthesis).top // positions.tile_height

  def check_memory(self, grid: TileGrid) -> None:
    """Raises MemoryLimitError if a window does not fit into memory."""
    height, width = self._largest_window(grid)
    batch = min(self.batch, grid.num_tiles)
    batch *= len(tile_devices.devices(-(-grid.num_tiles // batch)))   # devices that share the memory of the host
    check_memory(self.coder.config, height * batch, width, what=f"{batch} tiles with their surroundings" if batch > 1
                 else "a tile with its surroundings")

  def automatic_side(self, height: int, width: int) -> int | None:
    """Returns the first of AUTOMATIC_SIDES that is smaller than the image and fits into memory, or None."""
    for side in AUTOMATIC_SIDES:
      window = self._largest_window(self.grid(height, width, side))
      if side < max(height, width) and is_enough_memory(self.coder.config, *window):
        return side
    return None

  def has_compiled(self, grid: TileGrid) -> bool:
    """Whether encoding and decoding tiles of this shape compiles nothing: they were coded recently."""
    positions, module = grid.coarser(self._stride), self.coder.module
    cells = synthesis_cells(grid, self._stride, self.coder.config)
    if self.stages:
      seen = positions.window_size(self.stages.second)
      scale, channels = self._stride // self.stages.factor, self.stages.channels
    else:
      seen, scale, channels = positions.window_size(self.halos.analysis), self._stride, 3
    shape = (1, *(scale * side for side in seen), channels)
    return (tile_functions.analyze_window.is_cached(shape, module) and tile_functions.synthesize_tiles.is_cached(
        (1, *cells.window_size(self.halos.synthesis), self.coder.config.M), module))

  def _largest_window(self, grid: TileGrid) -> tuple[int, int]:
    return grid.window_size(self._stride * max(self.halos.analysis, self.halos.synthesis))


def y_hat_of(coder: LatentCoder, last_pass: tuple) -> np.ndarray:
  """Computes y_hat (h, w, M) of a tile, on the host, from the result of LatentCoder.run_passes."""
  return np.asarray(tile_functions.finish_tile(coder.module, coder.variables, *last_pass))[0]
