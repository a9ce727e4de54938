"""Tests of tiles: equality with whole images, regions, and damaged files."""
import functools
import io
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import random_variables
from helpers.light_codec import CHENG, LIGHT_HALOS, LIGHT_STAGES, light_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlic_jax.coding import bitstream, jit_functions, memory_estimate, tile_cells, tiled_coder, tiled_format
from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.memory_estimate import MemoryLimitError
from mlic_jax.coding.receptive_field import Halos
from mlic_jax.coding.tile_grid import Box, TilingError
from mlic_jax.coding.tiled_format import TiledFile

TILE = 64                                                # 4 positions of y, where the halo of g_s is 2


@pytest.fixture(scope="module")
def whole():
  return Codec(light_model())


@pytest.fixture(scope="module")
def codec(whole):
  return whole.with_options(tile=TILE)


@pytest.fixture(scope="module")
def image():
  """Returns an image, (190, 250, 3) uint8: 3 x 4 tiles, where the last row and column extend beyond its edges."""
  row, column = np.mgrid[:190, :250][..., None]
  waves = np.sin(row / [9, 14, 23] + 1) + np.cos(column / [17, 8, 12])
  return np.uint8(np.clip(128 + 50 * waves + np.random.default_rng(0).normal(0, 6, waves.shape), 0, 255))


@pytest.fixture(scope="module")
def coded(codec, image):
  """Returns the file and the image that the encoder predicts."""
  return codec.encode_with_reconstruction(image, 2)


def levels(image, other):
  """Returns the largest difference in 8-bit levels."""
  return np.abs(image.astype(int) - other).max()


def test_decode_gives_what_the_encoder_predicted(codec, whole, coded, image):
  blob, predicted = coded
  np.testing.assert_array_equal(whole.decode(blob), predicted)
  assert codec.encode(image, 2) == blob and predicted.shape == image.shape
  part = np.ascontiguousarray(image[:128, :192])
  error = lambda decoded: np.mean(np.square(part.astype(float) - decoded))
  assert error(codec.decode(codec.encode(part, 2))) < 1.05 * error(whole.decode(whole.encode(part, 2)))


def test_halos_and_stages_are_those_of_the_layers(codec):
  assert codec.tiles.halos == LIGHT_HALOS and codec.tiles.stages == LIGHT_STAGES


def test_y_of_the_tiles_is_y_of_the_whole_image(codec, image):
  tiles, grid = codec.tiles, codec.tiles.grid(190, 250, TILE)
  padded = np.pad(image, ((0, 2), (0, 6), (0, 0)), mode="edge")
  y = np.asarray(codec.coder.analyze(padded, 2).y)[0]
  for number, latents in enumerate(each for batch in tiles.latents(image, 2, TILE) for each in batch):
    expected = y[grid.coarser(16).box(number).slices]
    np.testing.assert_allclose(np.asarray(latents.y)[0], expected, atol=1e-5 * np.abs(y).max())


@functools.partial(jax.jit, static_argnums=0)
def synthesize_whole(module, variables, y_hat):
  """Returns the pixels of a whole image at quality 2, uint8."""
  return jit_functions.to_uint8(module.apply(variables, y_hat, 2, method="synthesize"))


@pytest.mark.parametrize("floats", [2**25, 1])
def test_pixels_of_the_tiles_are_those_of_the_whole_synthesis_at_borders_and_elsewhere(floats, monkeypatch):
  """Also where a tile is four cells, one position wide each. The halo of these transforms is nearly two tiles wide."""
  variables = random_variables(CHENG)
  codec = Codec(Model("cheng2020", CHENG, variables, build_table(CHENG, variables), b"8 bytes.", None))
  monkeypatch.setattr(tiled_coder, "halos", lambda *_: Halos(4, 8, 1))   # which test_receptive_field.py measures
  monkeypatch.setattr(tile_cells, "FLOATS", floats)
  grid, rng = codec.tiles.grid(310, 380, TILE), np.random.default_rng(0)
  y_hat = rng.normal(0, 3, (20, 24, codec.config.M)).astype(np.float32)
  tiles = {number: y_hat[grid.coarser(16).box(number).slices] for number in range(grid.num_tiles)}
  model = codec.coder.module, codec.variables
  expected = np.asarray(synthesize_whole(*model, y_hat[None]))[0]
  difference = np.abs(codec.tiles.synthesize(grid, 2, tiles).astype(int) - expected[:310, :380])
  row, column = (np.minimum(np.arange(side) % TILE, -np.arange(side) % TILE) for side in (310, 380))
  at_border = (row[:, None] < 2) | (column < 2)
  assert expected.std() > 5 and difference.max() <= 1
  assert difference[at_border].mean() < 1e-3 and difference[~at_border].mean() < 1e-3


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 189), st.integers(0, 249), st.data())
def test_a_region_has_the_pixels_of_the_whole_image(codec, coded, y, x, data):
  blob, predicted = coded
  height, width = data.draw(st.integers(1, 190 - y)), data.draw(st.integers(1, 250 - x))
  region = codec.decode_region(blob, x, y, width, height)
  assert region.shape == (height, width, 3) and levels(region, predicted[y:y + height, x:x + width]) <= 1


@pytest.mark.parametrize("batch", [1, 3])
def test_a_region_of_tiles_in_cells_has_the_pixels_of_the_whole_image(codec, coded, batch, monkeypatch):
  monkeypatch.setattr(tile_cells, "FLOATS", 1)
  blob, predicted = coded
  region = Codec(codec.coder, None, codec.options, tile_batch=batch).decode_region(blob, 50, 100, 101, 77)
  assert region.shape == (77, 101, 3) and levels(region, predicted[100:177, 50:151]) <= 1


def test_a_region_reads_its_tiles_alone(codec, coded):
  blob, predicted = coded
  file = io.BytesIO(blob)
  corner = codec.decode_region(file, 0, 0, 20, 10)
  assert levels(corner, predicted[:10, :20]) <= 1
  assert TiledFile(blob).bytes_read < 0.1 * len(blob)
  tiled = TiledFile(blob)
  codec.open_tiled(tiled).decode(Box(0, 0, 10, 20))
  assert tiled.bytes_read < 0.5 * len(blob)              # 4 of 12 tiles


def test_regions_of_files_without_tiles_are_cut_from_the_image(whole, photograph):
  blob = whole.encode(photograph, 2)
  np.testing.assert_array_equal(whole.decode_region(blob, 30, 20, 40, 10), whole.decode(blob)[20:30, 30:70])
  for region in (-1, 0, 5, 5), (0, 0, 0, 5), (126, 0, 5, 5), (0, 61, 5, 5):
    with pytest.raises(TilingError, match="the region has .* pixels at .*; the image has 130x65"):
      whole.decode_region(blob, *region)


@pytest.mark.parametrize("height, width", [(1, 1), (64, 64), (65, 1), (3, 200)])
def test_any_size_round_trips(codec, image, height, width):
  part = np.ascontiguousarray(image[:height, :width])
  blob, predicted = codec.encode_with_reconstruction(part, 2)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  assert predicted.shape == part.shape


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([64, 128]))
def test_any_size_and_tile_round_trips(whole, image, height, width, tile):
  part = np.ascontiguousarray(image[:height, :width])
  codec = whole.with_options(tile=tile)
  blob, predicted, bits = codec.encode_with_bits(part, 2)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  num_tiles = TiledFile(blob).grid.num_tiles
  assert abs(8 * len(blob) - bits()) < 0.03 * bits() + 8 * (60 + 40 * num_tiles)


def test_what_lies_beyond_the_image_costs_next_to_nothing(codec, image):
  """130 rows are 2 rows of tiles, of 256 rows; the entropy model codes y of the first 192 alone."""
  sizes = []
  for rows in 130, 192, 256:
    part = np.pad(image[:130, :64], ((0, rows - 130), (0, 0), (0, 0)), mode="edge")
    sizes.append(len(codec.encode(np.ascontiguousarray(part), 2, tile=128)))
  assert sizes[0] <= sizes[1] + 2 < 0.9 * sizes[2]
  assert tiled_format.is_tiled(codec.encode(image[:64, :64], 2))   # also with a single tile


@pytest.mark.parametrize("options", [dict(chunked=False), dict(portable=False), dict(skip=0.3)])
def test_tiles_have_all_options_of_files(codec, image, options):
  codec = codec.with_options(**options)
  part = np.ascontiguousarray(image[:150, :100])
  blob, predicted = codec.encode_with_reconstruction(part, 2, icc_profile=b"a color profile")
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  assert TiledFile(blob).content.icc_profile == b"a color profile"


def test_the_estimate_is_that_of_the_coded_tiles(codec, image):
  part = np.ascontiguousarray(image[:150, :100])
  _, predicted, bits = codec.encode_with_bits(part, 2)
  estimated, decoded = codec.estimate(part, 2)
  np.testing.assert_array_equal(decoded, predicted)
  np.testing.assert_allclose(estimated, bits(), rtol=1e-6)
  y_bits, z_bits = codec.element_bits(part, 2)
  assert y_bits.shape == (12, 8, 32) and z_bits.shape == (3, 2, 16)
  np.testing.assert_allclose(y_bits.sum() + z_bits.sum(), estimated, rtol=1e-4)


def test_slices_decode_in_every_tile(codec, coded, image):
  blob, predicted = coded
  errors = [np.square(codec.decode(blob, slices=slices).astype(float) - predicted).mean() for slices in (0, 1, 2)]
  assert errors[0] > errors[2] == 0 and errors[1] > 0
  with pytest.raises(BitstreamError, match="slices=3; wanted an integer from 0 to 2"):
    codec.decode(blob, slices=3)
  (received, decoded), = codec.decode_progressively(blob)
  assert received == len(blob)
  np.testing.assert_array_equal(decoded, predicted)


def test_a_file_decodes_with_any_batch_of_tiles(whole, codec, image):
  """As on another machine: the symbols are the same, and pixels within one level."""
  part = np.ascontiguousarray(image[:, :170])            # 9 tiles: two batches of 4, and a tile that is left
  together = Codec(whole.coder, options=codec.options, tile_batch=4)
  blob, predicted = codec.encode_with_reconstruction(part, 2)
  other, predicted_together = together.encode_with_reconstruction(part, 2)
  assert abs(len(blob) - len(other)) <= 0.01 * len(blob)
  for file, expected in (blob, predicted), (other, predicted_together):
    for decoder in codec, together:
      assert levels(decoder.decode(file), expected) <= 1
  lines = []
  damaged = with_damage(other, 4, 3)
  assert levels(together.decode(damaged, partial=True, report=lines.append), codec.decode(damaged, partial=True)) <= 1
  assert len(lines) == 1 and lines[0].startswith("tile 5 of 9 ")


def test_a_file_that_is_not_portable_is_coded_tile_by_tile_whatever_the_batch(whole, codec, image):
  together = Codec(whole.coder, options=codec.options.replace(portable=False), tile_batch=4)
  part = np.ascontiguousarray(image[:128, :128])
  blob = together.encode(part, 2)
  assert blob == codec.encode(part, 2, portable=False)
  np.testing.assert_array_equal(together.decode(blob), codec.decode(blob))


# --- damaged and hostile files ------------------------------------------------------------

def with_damage(blob, number, place):
  """Returns the file with one changed byte in a tile."""
  file, blob = TiledFile(blob), bytearray(blob)
  blob[file._offsets[number] + place] ^= 0x55
  return bytes(blob)


def test_a_damaged_tile_costs_that_tile_and_a_rim_of_its_neighbors(codec, coded):
  blob, predicted = coded
  damaged = with_damage(blob, 5, 3)
  with pytest.raises(BitstreamError, match=r"tile 6 of 12 \(row 2, column 2\): .*hyperprior.*; --partial"):
    codec.decode(damaged)
  lines = []
  decoded = codec.decode(damaged, partial=True, report=lines.append)
  assert lines == ["tile 6 of 12 (row 2, column 2): it is damaged: the checksum of the hyperprior (z) does not match"]
  lost = np.zeros(predicted.shape, bool)
  reach = 16 * codec.tiles.halos.synthesis
  lost[64 - reach:128 + reach, 64 - reach:128 + reach] = True
  np.testing.assert_array_equal(decoded[~lost], predicted[~lost])
  beside = np.abs(decoded[64:128, 46:64].astype(int) - predicted[64:128, 46:64]).mean()
  inside = np.abs(decoded[64:128, 64:128].astype(int) - predicted[64:128, 64:128]).mean()
  assert beside < inside / 2
  np.testing.assert_array_equal(codec.decode_region(damaged, 230, 170, 9, 9), predicted[170:179, 230:239])


def test_a_file_that_ends_early_decodes_as_far_as_it_goes(codec, coded):
  blob, predicted = coded
  with pytest.raises(BitstreamError, match=r"truncated: .* tile \d+ of 12 .* is incomplete; --partial \(in"):
    codec.decode(blob[:-300])
  lines = []
  decoded = codec.decode(blob[:-300], partial=True, report=lines.append)
  np.testing.assert_array_equal(decoded[:96], predicted[:96])
  assert lines and all("of 12 (row 3, " in line for line in lines)
  nothing = blob[:TiledFile(blob)._offsets[0]]
  with pytest.raises(BitstreamError, match="no tile of the file can be decoded: tile 12 of 12"):
    codec.decode(nothing, partial=True)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_one_line_or_an_image_that_is_right_far_from_it(codec, image, data):
  part = np.ascontiguousarray(image[:64])
  blob, predicted = codec.encode_with_reconstruction(part, 2)
  file = TiledFile(blob)
  number = data.draw(st.integers(0, file.grid.num_tiles - 1))
  place = data.draw(st.integers(0, file._offsets[number + 1] - file._offsets[number] - 1))
  damaged = with_damage(blob, number, place)
  with pytest.raises(BitstreamError, match=f"tile {number + 1} of 4"):
    codec.decode(damaged)
  lines = []
  decoded = codec.decode(damaged, partial=True, report=lines.append)
  assert len(lines) == 1 and f"tile {number + 1} of 4" in lines[0]
  far = np.abs(np.arange(250) - 64 * number - 32) > 32 + 16 * codec.tiles.halos.synthesis
  np.testing.assert_array_equal(decoded[:, far], predicted[:, far])


def test_a_forged_stream_is_a_damaged_tile(codec, image):
  """Behind checksums that fit: the decoder neither hangs nor crashes, and other tiles are as they were."""
  part = np.ascontiguousarray(image[:64])
  blob = codec.encode(part, 2, portable=False)
  file = TiledFile(blob)
  contents = [file.read_tile(n) for n in range(4)]
  contents[0] = contents[0]._replace(chunks=(contents[0].chunks[0], b"\xff" * 5000, contents[0].chunks[2]))
  head = bitstream.pack_header(file.content)
  forged = tiled_format.write(file.content, [tiled_format.pack_tile(head, n, each) for n, each in enumerate(contents)])
  with pytest.raises(BitstreamError, match="tile 1 of 4 .*the coded data has the wrong length"):
    codec.decode(forged)
  lines = []
  decoded = codec.decode(forged, partial=True, report=lines.append)
  assert len(lines) == 1 and lines[0].startswith("tile 1 of 4 (row 1, column 1): ")
  np.testing.assert_array_equal(decoded[:, 96:], codec.decode(blob)[:, 96:])


@pytest.mark.parametrize("tile", [(64, 96), (64, 448), (128, 64)])
def test_tiles_that_the_model_cannot_have_written_are_refused(codec, image, tile):
  blob = codec.encode(image[:64], 2)
  header = TiledFile(blob).content._replace(tile=tile)
  count = tiled_format.grid_of(header).num_tiles
  with pytest.raises(BitstreamError, match=f"tiles of {tile[0]}x{tile[1]} pixels; wanted multiples of 64, and at most"):
    codec.decode(tiled_format.write(header, [b""] * count))


@pytest.mark.parametrize("options, message", [
    (dict(tile=100), "tile=100; wanted a multiple of 64 pixels"), (dict(tile=-64), "tile=-64; wanted a number"),
    (dict(tile=64, refine=5, lmbda=1.0), "tile=64 and refine=5 exclude each other")])
def test_tiles_that_cannot_be_are_refused(whole, image, options, message):
  with pytest.raises(TilingError, match=message):
    whole.encode(image, 2, **options)


# --- memory -------------------------------------------------------------------------------

def test_an_image_that_does_not_fit_into_memory_is_coded_in_tiles(whole, monkeypatch):
  needed = lambda side: memory_estimate.bytes_needed(whole.config, side, side)
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: needed(500))
  assert whole.tile_side(512, 512) is None and whole.with_options(tile=0).tile_side(4000, 4000) is None
  assert whole.tile_side(1000, 1000) == 256              # with a halo of 32 pixels on each side
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: needed(1400))
  assert whole.tile_side(4000, 4000) == 1024
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: 1000)
  assert whole.tile_side(4000, 4000) is None
  with pytest.raises(MemoryLimitError, match="the image is 300x300"):
    whole.encode(np.zeros((300, 300, 3), np.uint8), 2)
  with pytest.raises(MemoryLimitError, match="a tile with its surroundings is 128x128"):
    whole.encode(np.zeros((300, 300, 3), np.uint8), 2, tile=64)


def test_the_decoder_holds_the_rows_of_tiles_that_a_window_needs(codec, image):
  tall = np.tile(image[:, :64], (4, 1, 1))               # 12 rows of tiles
  file = TiledFile(codec.encode(tall, 2))
  decoder, held = codec.open_tiled(file), []
  for _ in decoder.strips(Box(0, 0, len(tall), 64)):
    held.append(len(decoder._y_hat))
  assert len(held) == 12 and max(held) <= 3


def test_files_without_tiles_are_as_before(whole):
  fixtures = Path(__file__).parents[1] / "fixtures" / "written_before"
  assert not any(tiled_format.is_tiled(path.read_bytes()) for path in fixtures.glob("*.mlic"))
  assert whole.encode(np.zeros((64, 64, 3), np.uint8), 2)[4] == bitstream.VERSION == 4
