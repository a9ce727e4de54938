"""Files that are read in strips give the tiles of whole images, in the memory of some rows."""
import numpy as np
import pytest
from helpers.light_codec import light_model
from PIL import Image

from mlic_jax.coding import analysis_stages
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.pixel_rows import PixelRows
from mlic_jax.coding.receptive_field import halos
from mlic_jax.coding.tile_grid import Box, TileGrid
from mlic_jax.coding.tiled_analysis import TiledAnalysis
from mlic_jax.data import png_strips, strip_files, tiff_strips
from mlic_jax.data.image_io import ImageError
from mlic_jax.data.image_strips import open_strips
from mlic_jax.model.mlic import build


@pytest.fixture
def image():
  return np.random.default_rng(0).integers(0, 256, (310, 130, 3), np.uint8)


@pytest.fixture
def saved(image, tmp_path, monkeypatch):
  """Returns a function that saves the image and opens it in strips of 16 rows."""
  for module in strip_files, png_strips, tiff_strips:
    monkeypatch.setattr(module, "ROWS", 16)

  def save(name, **options):
    Image.fromarray(image).save(tmp_path / name, **options)
    return open_strips(tmp_path / name)

  return save


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.ppm"])
def test_windows_are_those_of_the_array_within_the_image_and_beyond(saved, image, name):
  padded = np.pad(image, ((0, 100), (0, 50), (0, 0)), mode="edge")
  rows, whole = PixelRows(saved(name)), PixelRows(image)
  for box in map(Box._make, [(0, 0, 20, 30), (7, 5, 90, 130), (60, 100, 100, 180), (300, 0, 410, 10),
                             (320, 140, 330, 150)]):
    rows.forget(box.top)
    np.testing.assert_array_equal(rows.cut(box), padded[box.slices])
    np.testing.assert_array_equal(whole.cut(box), padded[box.slices])


def test_rows_are_read_when_they_are_needed_and_held_until_they_are_forgotten(saved):
  rows, strip = PixelRows(saved("image.png")), 16 * 130 * 3
  assert rows.num_bytes == 0
  rows.cut(Box(0, 0, 17, 5))
  assert rows.num_bytes == 2 * strip
  rows.forget(31)
  assert rows.num_bytes == strip
  rows.cut(Box(31, 0, 50, 5))
  rows.forget(10**6)
  with pytest.raises(ValueError, match="rows from 0 on were freed"):
    rows.cut(Box(0, 0, 1, 1))


@pytest.mark.parametrize("staged", [True, False])
def test_the_encoder_holds_the_rows_of_a_row_of_tiles_and_their_surroundings(saved, staged):
  model = build(light_model().config), light_model().variables
  found, grid, rows = halos(*model), TileGrid(310, 130, 64, 64), []
  stages = analysis_stages.measure(*model, found, 16) if staged else None
  analysis = TiledAnalysis([model], found, stages, saved("image.png"), grid, 16, 2.0, 1)
  for _ in analysis:
    rows.append(analysis._pixels.num_bytes / (130 * 3))
  around = 16 * found.analysis
  needed = 2 * 64 + around if staged else 64 + 2 * around   # rows; the first window needs cells of two rows
  assert len(rows) == 15 and max(rows) <= needed + 2 * 16 < 0.7 * 310   # strips of 16 rows are held as a whole


@pytest.mark.parametrize("name, options", [
    ("image.png", {}), ("image.tif", dict(compression="tiff_lzw", strip_size=5 * 130 * 3)), ("image.ppm", {})])
def test_the_file_of_strips_is_that_of_the_array(saved, image, name, options):
  codec = Codec(light_model())
  assert codec.encode(saved(name, **options), 2, tile=64) == codec.encode(image, 2, tile=64)


def test_strips_without_tiles_are_coded_as_a_whole_with_their_profile(saved, image):
  codec, profile = Codec(light_model()), b"\0" * 16 + b"RGB " + b"\0" * 16 + b"acsp"
  strips = saved("image.png", icc_profile=profile)
  assert codec.encode(strips, 2) == codec.encode(image, 2, profile)
  assert codec.encode(strips, 2, tile=64) == codec.encode(image, 2, profile, tile=64)


def test_damaged_pixels_are_one_line(saved, tmp_path):
  saved("image.png")
  content = (tmp_path / "image.png").read_bytes()
  (tmp_path / "image.png").write_bytes(content[:len(content) // 2])
  with pytest.raises(ImageError, match=r"image.png: cannot be read as an image \(.* truncated\)$"):
    Codec(light_model()).encode(open_strips(tmp_path / "image.png"), 2, tile=64)
