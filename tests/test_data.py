"""Claims about the training data: what is skipped and said, what a crop is, and that batch t depends on t alone."""
import logging

import numpy as np
import pytest
from PIL import Image

from mlic_jax.images import ImageError
from mlic_jax.training.data import (
  Photographs,
  center_crop,
  eval_images,
  random_crop,
  split_folder,
  training_batches,
  usable,
)


@pytest.fixture
def folder(tmp_path):
  """Ten photographs in several formats and sizes, all sides at least 80."""
  rng = np.random.default_rng(0)
  for i in range(10):
    pixels = rng.integers(0, 256, (80 + 7 * i, 130 - 5 * i, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i}.{('jpg', 'png', 'webp')[i % 3]}")
  return tmp_path


def batches(paths, count=3, **changes):
  settings = dict(seed=1, batch_size=4, crop_size=64, downscale_probability=0.5, flip=True)
  reader = training_batches(Photographs(paths), **(settings | changes))
  return np.stack([next(reader) for _ in range(count)])


def test_a_batch_is_uint8_crops(folder):
  assert batches(sorted(folder.iterdir())).shape == (3, 4, 64, 64, 3)
  assert batches(sorted(folder.iterdir())).dtype == np.uint8


def test_the_same_seed_reads_the_same_batches_and_another_seed_others(folder):
  paths = sorted(folder.iterdir())
  np.testing.assert_array_equal(batches(paths), batches(paths))
  assert (batches(paths) != batches(paths, seed=2)).any()


def test_a_reader_started_at_batch_t_goes_on_as_the_first_one_would_have(folder):
  paths = sorted(folder.iterdir())
  np.testing.assert_array_equal(batches(paths, 12)[5:], batches(paths, 7, start=5))


def test_threads_and_the_cache_do_not_change_the_batches(folder):
  paths = sorted(folder.iterdir())
  cached = training_batches(Photographs(paths, cache_bytes=10**8), seed=1, batch_size=4, crop_size=64,
                            downscale_probability=0.5, flip=True, threads=3)
  np.testing.assert_array_equal(batches(paths, 8), np.stack([next(cached) for _ in range(8)]))


@pytest.mark.slow
def test_worker_processes_do_not_change_the_batches(folder):
  paths = sorted(folder.iterdir())
  np.testing.assert_array_equal(batches(paths, 4), batches(paths, 4, workers=2))


def test_the_blocks_of_two_processes_make_the_global_batch(folder):
  paths = sorted(folder.iterdir())
  halves = [batches(paths, 4, process_index=p, process_count=2) for p in range(2)]
  np.testing.assert_array_equal(batches(paths, 4), np.concatenate(halves, axis=1))


def test_an_epoch_sees_every_photograph_once_and_the_next_in_another_order(tmp_path):
  for i in range(8):
    Image.new("RGB", (64, 64), (i, i, i)).save(tmp_path / f"{i}.png")
  seen = batches(sorted(tmp_path.iterdir()), 4, downscale_probability=0.0)[:, :, 0, 0, 0].reshape(2, 8)
  assert sorted(seen[0]) == sorted(seen[1]) == list(range(8))
  assert list(seen[0]) != list(seen[1])


def test_a_broken_image_among_good_ones_is_named_and_counted(folder, caplog):
  (folder / "broken.jpg").write_bytes(b"not a jpeg")
  with caplog.at_level(logging.WARNING):
    kept = usable(sorted(folder.iterdir()), 64)
  assert len(kept) == 10
  assert "broken.jpg" in caplog.text and "skipped 1 broken" in caplog.text


def test_images_smaller_than_the_crop_are_skipped_with_a_count(folder, caplog):
  Image.new("RGB", (63, 200)).save(folder / "small.png")
  with caplog.at_level(logging.WARNING):
    assert len(usable(sorted(folder.iterdir()), 64)) == 10
  assert "1 with a side below 64 pixels" in caplog.text
  with pytest.raises(ImageError, match="none of 11 images is usable"):
    usable(sorted(folder.iterdir()), 500)


def test_an_image_that_fails_in_decoding_is_replaced_by_the_next_and_named_once(folder, caplog):
  whole = (folder / "1.png").read_bytes()
  (folder / "1.png").write_bytes(whole[:len(whole) // 2])
  paths = usable(sorted(folder.iterdir()), 64)  # its header is fine
  photographs = Photographs(paths)
  with caplog.at_level(logging.WARNING):
    for _ in range(3):
      np.testing.assert_array_equal(photographs[1], photographs[2])
  assert caplog.text.count("1.png") == 1


def test_every_nth_file_is_held_out_unless_there_is_an_eval_folder(folder):
  train, held_out = split_folder(str(folder), "", 5)
  assert [path.stem for path in held_out] == ["4", "9"] and len(train) == 8
  train, held_out = split_folder(str(folder), str(folder), 5)
  assert len(train) == len(held_out) == 10


@pytest.mark.parametrize("data_dir, holdout_every, message", [
    ("", 5, "data_dir is empty"), ("missing", 5, "no such folder"), (".", 5, "holds no image"),
    ("photographs", 500, "none left for evaluation"), ("photographs", 1, "wanted at least 2")])
def test_a_folder_that_cannot_be_trained_on_is_one_line(tmp_path, data_dir, holdout_every, message):
  (tmp_path / "photographs").mkdir()
  Image.new("RGB", (64, 64)).save(tmp_path / "photographs" / "a.png")
  (tmp_path / "empty").mkdir()
  where = {"": "", ".": tmp_path / "empty"}.get(data_dir, tmp_path / data_dir)
  with pytest.raises(ImageError, match=message) as error:
    split_folder(str(where), "", holdout_every)
  assert "\n" not in str(error.value)


def test_a_crop_without_downscaling_is_a_piece_of_the_photograph():
  image = np.arange(70 * 80 * 3, dtype=np.uint8).reshape(70, 80, 3)
  crop = random_crop(image, np.random.default_rng(0), 64, downscale_probability=0.0, flip=False)
  pieces = np.lib.stride_tricks.sliding_window_view(image, (64, 64, 3)).reshape(-1, 64, 64, 3)
  assert any((crop == piece).all() for piece in pieces)


def test_downscaling_goes_as_far_as_the_short_side_allows():
  ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
  rng = np.random.default_rng(0)
  spans = [np.ptp(random_crop(ramp, rng, 64, downscale_probability=1.0, flip=False)[0, :, 0]) for _ in range(200)]
  assert min(spans) < 75 and max(spans) > 240  # from a quarter of the ramp to all of it


def test_a_flip_mirrors_about_half_of_the_crops():
  ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
  rng = np.random.default_rng(0)
  flipped = [random_crop(ramp, rng, 64, 0.0, flip=True)[0, 0, 0] == 63 for _ in range(200)]
  assert 70 < sum(flipped) < 130


def test_held_out_images_are_centre_crops_spread_over_the_folder(folder):
  paths = sorted(folder.iterdir())
  images = eval_images(paths, 64, 2)
  assert images.shape == (2, 64, 64, 3)
  np.testing.assert_array_equal(images[1], center_crop(Photographs(paths)[5], 64))
