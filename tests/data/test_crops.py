"""Tests of random crops, and of image headers."""
import numpy as np
import pytest
from PIL import Image
from test_loader import batches, flat, ten_photographs  # noqa: F401 (a fixture among them)

from mlic_jax.data.augment import random_crop
from mlic_jax.data.image_io import load_image
from mlic_jax.data.image_source import Header, LazyImage, LazyImages, read_header
from mlic_jax.data.sources import Folder
from mlic_jax.errors import ConfigError


def crop_of(image, rng, downscale_probability=0.0, downscale="all", flip=False, lossy=False):
  """random_crop of 64 pixels from an array."""
  photograph = LazyImage(Header(min(image.shape[:2]), lossy, False), lambda reduction: image)
  return random_crop(photograph, rng, 64, downscale_probability=downscale_probability, downscale=downscale, flip=flip)


def ramp(size):
  """(size, size, 3), column k has the value k * 256 / size."""
  columns = np.arange(0, 256, 256 // size, dtype=np.uint8)
  return np.broadcast_to(columns[None, :, None], (size, size, 3))


def test_a_crop_without_downscaling_is_a_region_of_the_image():
  image = np.arange(70 * 80 * 3, dtype=np.uint8).reshape(70, 80, 3)
  crop = crop_of(image, np.random.default_rng(0))
  pieces = np.lib.stride_tricks.sliding_window_view(image, (64, 64, 3)).reshape(-1, 64, 64, 3)
  assert any((crop == piece).all() for piece in pieces)


def test_downscaling_goes_as_far_as_the_short_side_allows():
  rng = np.random.default_rng(0)
  spans = [np.ptp(crop_of(ramp(256), rng, downscale_probability=1.0)[0, :, 0]) for _ in range(200)]
  assert min(spans) < 75 and max(spans) > 240  # from a quarter of the ramp to all of it


def test_lossless_images_are_not_downscaled_with_downscale_lossy():
  rng = np.random.default_rng(0)
  settings = dict(downscale_probability=1.0, downscale="lossy")
  assert {np.ptp(crop_of(ramp(256), rng, **settings)[0, :, 0]) for _ in range(50)} == {63}
  assert max(np.ptp(crop_of(ramp(256), rng, **settings, lossy=True)[0, :, 0]) for _ in range(50)) > 200


def test_an_unknown_choice_of_what_is_downscaled_is_refused(folder):
  with pytest.raises(ConfigError, match="downscale='jpeg'; wanted one of all, lossy"):
    batches(folder, downscale="jpeg")


def test_a_flip_mirrors_about_half_of_the_crops():
  rng = np.random.default_rng(0)
  image = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
  flipped = [crop_of(image, rng, flip=True)[0, 0, 0] == 63 for _ in range(200)]
  assert 70 < sum(flipped) < 130


def test_headers_tell_lossy_files_from_lossless_ones(tmp_path, photograph):
  image = Image.fromarray(photograph)
  profile = b"x" * 33  # any: it makes the WebP an extended one, with chunks before the image
  image.save(tmp_path / "lossy.jpg")
  image.save(tmp_path / "lossy.webp", quality=80)
  image.save(tmp_path / "lossy_extended.webp", quality=80, icc_profile=profile)
  image.save(tmp_path / "kept.webp", lossless=True)
  image.save(tmp_path / "kept_extended.webp", lossless=True, icc_profile=profile)
  image.save(tmp_path / "kept.png")
  for path in tmp_path.iterdir():
    header = read_header(path)
    assert header == (65, path.stem.startswith("lossy"), path.suffix == ".jpg"), path.name


@pytest.mark.parametrize("orientation", [1, 6])  # 6: on its side
def test_a_jpeg_decoded_at_a_reduced_size_is_the_downscaled_image(tmp_path, orientation):
  row, column = np.mgrid[:104, :160][..., None]
  image = np.uint8(127 + 60 * np.sin(row / [9, 14, 23] + 1) + 60 * np.cos(column / [17, 8, 12]))
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(image).save(tmp_path / "0.jpg", quality=95, exif=exif)
  Image.fromarray(image[:101, :157]).save(tmp_path / "1.jpg")
  photographs = LazyImages(Folder("photos", [tmp_path / "0.jpg", tmp_path / "1.jpg"]))
  whole = Image.fromarray(load_image(tmp_path / "0.jpg"))
  for reduction in (2, 4, 8):
    wanted = np.asarray(whole.resize([side // reduction for side in whole.size], Image.Resampling.BOX)).astype(int)
    np.testing.assert_allclose(photographs[0].decode(reduction), wanted, atol=12)
    assert photographs[1].decode(reduction).shape == (-(-101 // reduction), -(-157 // reduction), 3)


def test_crops_of_a_jpeg_made_smaller_cover_what_they_would_without_the_shortcut(tmp_path):
  Image.fromarray(np.repeat(np.repeat(ramp(256), 2, 0), 2, 1)).save(tmp_path / "ramp.jpg", quality=95)
  Image.fromarray(np.repeat(np.repeat(ramp(256), 2, 0), 2, 1)).save(tmp_path / "ramp.png")
  short, whole = (LazyImages(Folder("photos", [tmp_path / f"ramp.{kind}"]))[0] for kind in ("jpg", "png"))
  for seed in range(20):
    crops = [random_crop(photograph, np.random.default_rng(seed), 64, downscale_probability=1.0, downscale="all",
                         flip=False)[32, :, 0].astype(int) for photograph in (short, whole)]
    assert abs(np.ptp(crops[0]) - np.ptp(crops[1])) <= 12
