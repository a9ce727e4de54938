"""TiledDecoder: decodes a tiled file, or a region of it, in strips from the top.

y_hat of a tile is decoded once, when the first window needs it, and freed after the last window that needs it.
"""
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mlic_jax.coding.bitstream import Bitstream, BitstreamError
from mlic_jax.coding.latent_coder import Job, LatentCoder
from mlic_jax.coding.tile_batches import batches
from mlic_jax.coding.tile_grid import Box
from mlic_jax.coding.tiled_coder import SILENT, TiledCoder, TileProgress, y_hat_of
from mlic_jax.coding.tiled_format import PARTIAL_HINT, TiledFile
from mlic_jax.model.mlic import side_multiple


class TiledDecoder:
  """Decodes one tiled file.

  Args:
    coder: the coder of the model that wrote the file.
    file: the file.
    slices: the number of slices to decode of each tile; None decodes all.
    partial: decode a damaged tile from the slices before the damage, and fill in a tile with a damaged z.
    report: called with a line about each incomplete tile, with `partial`.
    progress: called after each tile.

  BitstreamError for a file of another model; MemoryLimitError if a window does not fit into memory.
  """

  def __init__(self, coder: TiledCoder, file: TiledFile, slices: int | None = None, partial: bool = False,
               report: Callable[[str], None] = lambda line: None, progress: TileProgress = SILENT):
    self._coder, self._file, self._slices, self._partial = coder, file, slices, partial
    self._report, self._progress = report, progress
    self._quality = coder.coder.check_content(file.content)
    self._coders, self._batch = coder.coders(file.grid, file.content.origin is not None)
    self._y_hat: dict[int, np.ndarray | None] = {}
    self._num_decoded, self._error = 0, ""
    _check_tile(file, side_multiple(coder.coder.config))
    coder.check_memory(file.grid)

  def decode(self, area: Box | None = None) -> np.ndarray:
    """Decodes an area, by default the whole image, to (rows, columns, 3) uint8. Errors as in `strips`."""
    content = self._file.content
    area = area or Box(0, 0, content.height, content.width)
    image, top = np.empty((area.height, area.width, 3), np.uint8), 0
    for strip in self.strips(area):
      image[top:top + len(strip)] = strip
      top += len(strip)
    return image

  def strips(self, area: Box) -> Iterator[np.ndarray]:
    """Yields the pixels of an area by rows of tiles, (rows, columns, 3) uint8 each.

    It reads only the tiles that the area and its halo touch. TilingError if the area is not inside the image;
    BitstreamError for a damaged tile, or with `partial` if no tile can be decoded; PortabilityError as in `decode` of a
    file without tiles."""
    grid, content, done = self._file.grid, self._file.content, 0
    area.check_inside(content.height, content.width)
    total = len(grid.touching(area))
    rows = [{number: grid.box(number).shared(area) for number in numbers} for numbers in grid.rows_of_tiles(area)]
    for some in batches(rows, -(-len(self._coders) * self._batch // len(rows[0]))):   # that occupy all devices
      self._decode_ahead(some)
      pixels = self._coder.synthesize_tiles(grid, some, self._quality, self._find, self._batch, self._coders)
      for parts in some:
        strip = []
        for each in itertools.islice(pixels, len(parts)):
          strip.append(each)
          done += 1
          self._progress(done, total)
        if parts is some[-1]:
          self._forget(max(parts) // grid.columns + 1)
        yield np.concatenate(strip, axis=1)
    if not self._num_decoded:
      raise BitstreamError(f"no tile of the file can be decoded: {self._error}")

  def _find(self, number: int) -> np.ndarray | None:
    """Returns y_hat of a tile (h, w, M), None if it is missing."""
    if number not in self._y_hat:
      self._decode([[number]], 1)
    return self._y_hat[number]

  def _decode_ahead(self, rows: Sequence[dict[int, Box]]) -> None:
    """Decodes the tiles that parts of tiles need, where that is done in batches or on several devices."""
    if self._batch * len(self._coders) > 1:
      groups, known = list[list[int]](), set(self._y_hat)
      for parts in rows:
        needed = {number for each in parts.items() for number in self._coder.tiles_seen(self._file.grid, *each)}
        groups += batches(sorted(needed.difference(known)), self._batch)
        known |= needed
      for turn in batches(groups, len(self._coders)):
        self._decode(turn, self._batch)

  def _forget(self, row: int) -> None:
    """Frees the tiles above the windows of this row of tiles, which no later row needs."""
    grid = self._file.grid
    if row < grid.rows:
      first = self._coder.first_row_of_window(grid, row)
      self._y_hat = {number: each for number, each in self._y_hat.items() if number // grid.columns >= first}

  def _decode(self, turn: Sequence[Sequence[int]], batch: int) -> None:
    """Decodes tiles, at most `batch` of them on each device."""
    contents = {number: self._read(number) for numbers in turn for number in numbers}
    readable = {number: each for number, each in contents.items() if isinstance(each, Bitstream)}
    groups = [group for group in ([number for number in numbers if number in readable] for numbers in turn) if group]
    jobs = [[self._job(coder, number, readable[number]) for number in group]
            for coder, group in zip(self._coders, groups)]
    results = self._coder.run_jobs(self._coders, jobs, batch)
    found = {number: each for group, some in zip(groups, results) for number, each in zip(group, some)}
    for number, content in contents.items():
      result = found.get(number, content)
      self._y_hat[number] = None
      if isinstance(result, BitstreamError):
        self._refuse(number, result)
        continue
      self._y_hat[number] = result
      self._num_decoded += 1
      if readable[number].num_received < readable[number].num_slices:
        self._report(f"{self._file.name(number)}: {readable[number].num_received} of {readable[number].num_slices} "
                     "slices are complete")

  def _read(self, number: int) -> Bitstream | BitstreamError:
    try:
      return self._file.read_tile(number, self._partial)
    except BitstreamError as error:
      return error

  def _job(self, coder: LatentCoder, number: int, content: Bitstream) -> Job:
    """Returns the job of a tile on the device of `coder`. Its result is y_hat (h, w, M), or the error where there is
    one: other tiles of its batch go on."""
    num_slices = content.num_received if self._slices is None else min(content.num_received, self._slices)
    job = coder.decoding(content, num_slices, self._coder.inside(self._file.grid, number))

    def finish(last_pass):
      try:
        return y_hat_of(coder, job.finish(last_pass))
      except BitstreamError as error:  # passes read anything; the end of a stream shows what is wrong with it
        return error

    return job._replace(finish=finish)

  def _refuse(self, number: int, error: BitstreamError) -> None:
    """Raises the error of a tile, or reports it."""
    name = self._file.name(number)
    self._error = str(error) if str(error).startswith(name) else f"{name}: {error}"
    if not self._partial:
      raise BitstreamError(f"{self._error}{PARTIAL_HINT}")
    self._report(self._error)


def _check_tile(file: TiledFile, multiple: int) -> None:
  """Raises BitstreamError for tiles that the model cannot have written."""
  content, tile = file.content, (file.grid.tile_height, file.grid.tile_width)
  limits = [-(-side // multiple) * multiple for side in (content.height, content.width)]
  if any(side % multiple or side > limit for side, limit in zip(tile, limits)):
    raise BitstreamError(f"the file is damaged: it has tiles of {tile[0]}x{tile[1]} pixels; wanted multiples of "
                         f"{multiple}, and at most {limits[0]}x{limits[1]} for this image")
