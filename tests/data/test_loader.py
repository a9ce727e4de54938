"""Tests of the training data: skipped images, crops, and batch t as a function of t alone."""
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data import image_source
from mlic_jax.data.augment import center_crop
from mlic_jax.data.image_io import ImageError, load_image
from mlic_jax.data.image_source import LazyImages
from mlic_jax.data.loader import (
  Mixture,
  crop_size_at,
  crop_sizes,
  eval_images,
  training_batches,
  usable,
)
from mlic_jax.data.sources import Folder, open_sources
from mlic_jax.errors import ConfigError


@pytest.fixture(name="folder")
def ten_photographs(tmp_path):
  """Ten images in several formats and sizes, all sides at least 80."""
  rng = np.random.default_rng(0)
  (tmp_path / "photos").mkdir()
  for i in range(10):
    pixels = rng.integers(0, 256, (80 + 7 * i, 130 - 5 * i, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.{('jpg', 'png', 'webp')[i % 3]}")
  return tmp_path / "photos"


def flat(path, value, size=(64, 64)):
  """An image of one gray value, which tells where a crop came from."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, (value, value, value)).save(path)


def batches(sources, count=3, sizes=((0, 64),), cache_bytes=0, **changes):
  """The first batches of `sources`, text or folder: a list of arrays."""
  settings = dict(seed=1, batch_size=4, downscale_probability=0.5, downscale="all", flip=True)
  mixture = Mixture(open_sources(str(sources), ""), sizes, cache_bytes)
  reader = training_batches(mixture, sizes=sizes, **(settings | changes))
  return [next(reader) for _ in range(count)]


# --- batches -------------------------------------------------------------------------

def test_a_batch_is_uint8_crops(folder):
  for batch in batches(folder):
    assert batch.shape == (4, 64, 64, 3) and batch.dtype == np.uint8


def test_the_same_seed_reads_the_same_batches_and_another_seed_others(folder):
  np.testing.assert_array_equal(batches(folder), batches(folder))
  assert (np.stack(batches(folder)) != np.stack(batches(folder, seed=2))).any()


@pytest.fixture(name="one")
def one_image(tmp_path):
  """A folder with one image of noise whose left half is dark: only the crops can differ, and a mirrored one shows."""
  pixels = np.random.default_rng(0).integers(0, 100, (90, 100, 3), np.uint8)
  pixels[:, 50:] += 150
  (tmp_path / "one").mkdir()
  Image.fromarray(pixels).save(tmp_path / "one" / "a.png")
  return tmp_path / "one"


def test_the_crops_of_an_image_follow_the_seed_and_their_number(one):
  first, again, other = (np.concatenate(batches(one, 4, seed=seed)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert all((a != b).any() for a, b in zip(first, other))
  assert len({crop.tobytes() for crop in (*first, *other)}) == 32


def test_half_of_the_crops_are_mirrored_and_as_many_made_smaller_as_was_said(one):
  pixels = np.asarray(Image.open(one / "a.png"))
  windows = {pixels[i:i + 64, j:j + 64].tobytes() for i in range(27) for j in range(37)}
  def shares(**changes):
    """Of 200 crops, those with the dark half on the right, and those that are windows of the image or their mirrors."""
    crops = np.concatenate(batches(one, 50, **changes))
    whole = [crop.tobytes() in windows or np.ascontiguousarray(crop[:, ::-1]).tobytes() in windows for crop in crops]
    return np.mean([crop[:, :8].mean() > crop[:, -8:].mean() for crop in crops]), np.mean(whole)
  mirrored, whole = shares(downscale_probability=0.3)
  assert abs(mirrored - 0.5) < 0.15 and abs(whole - 0.7) < 0.15
  assert shares(downscale_probability=0.0, flip=False) == (0, 1)
  mirrored, whole = shares(downscale_probability=1.0, flip=False)
  assert mirrored == 0 and whole < 0.15                       # a factor near 1 leaves the size as it is
  assert shares(downscale="lossy", flip=False) == (0, 1)      # a PNG is not


def test_crops_reach_every_edge_of_an_image(one):
  pixels = np.asarray(Image.open(one / "a.png"))
  corners = {pixels[i:i + 64, j:j + 64].tobytes(): (i, j) for i in range(27) for j in range(37)}
  seen = {corners[crop.tobytes()] for crop in np.concatenate(batches(one, 100, downscale_probability=0.0, flip=False))}
  rows, columns = zip(*seen)
  assert (min(rows), max(rows), min(columns), max(columns)) == (0, 26, 0, 36)


def test_a_reader_started_at_batch_t_goes_on_as_the_first_one_would_have(folder):
  np.testing.assert_array_equal(batches(folder, 12)[5:], batches(folder, 7, start=5))


def test_threads_and_the_cache_do_not_change_the_batches(folder):
  np.testing.assert_array_equal(batches(folder, 8), batches(folder, 8, cache_bytes=10**8, threads=3))


def test_an_image_that_two_threads_decode_at_once_is_cached_once(tmp_path, monkeypatch):
  for i in range(2):
    flat(tmp_path / f"{i}.png", i)
  decode, decoded, together = image_source.decode, [], threading.Barrier(2)

  def noted(file, reduction):
    if file.parent == tmp_path:              # not for a reader of an earlier test that has not ended yet
      decoded.append(file.name)
    if file == tmp_path / "0.png":
      together.wait(timeout=60)
    return decode(file, reduction)

  monkeypatch.setattr(image_source, "decode", noted)
  images = LazyImages(Folder("photos", [tmp_path / "0.png", tmp_path / "1.png"]), cache_bytes=2 * 64 * 64 * 3)
  with ThreadPoolExecutor(2) as threads:
    list(threads.map(lambda _: images[0].decode(), range(2)))
  for index in 1, 0, 1:
    assert images[index].decode()[0, 0, 0] == index
  assert decoded == ["0.png", "0.png", "1.png"]


@pytest.mark.slow
def test_worker_processes_do_not_change_the_batches(folder):
  np.testing.assert_array_equal(batches(folder, 4), batches(folder, 4, workers=2))


def test_the_blocks_of_two_processes_make_the_global_batch(folder):
  halves = [batches(folder, 4, process_index=p, process_count=2) for p in range(2)]
  np.testing.assert_array_equal(batches(folder, 4), np.concatenate(halves, axis=1))
  quarters = [batches(folder, 4, process_index=p, process_count=4) for p in range(4)]  # of one crop each
  np.testing.assert_array_equal(batches(folder, 4), np.concatenate(quarters, axis=1))


def test_an_epoch_has_every_image_once_and_the_next_in_another_order(tmp_path):
  for i in range(8):
    flat(tmp_path / f"{i}.png", i)
  seen = np.stack(batches(tmp_path, 4, downscale_probability=0.0))[:, :, 0, 0, 0].reshape(2, 8)
  assert sorted(seen[0]) == sorted(seen[1]) == list(range(8))
  assert list(seen[0]) != list(seen[1])


# --- larger crops late in training ---------------------------------------------------

SIZES = ((0, 64), (2, 128))


def test_crops_grow_at_their_step_whether_the_reader_starts_before_or_after(folder):
  late = folder / "late"
  late.mkdir()
  Image.fromarray(np.random.default_rng(1).integers(0, 256, (140, 150, 3), np.uint8)).save(late / "large.png")
  read = batches(folder, 5, SIZES)
  assert [batch.shape[1:3] for batch in read] == [(64, 64)] * 2 + [(128, 128)] * 3
  for later, batch in zip(batches(folder, 2, SIZES, start=3), read[3:]):
    np.testing.assert_array_equal(later, batch)


def test_images_too_small_for_later_crops_are_read_before_and_replaced_after(tmp_path, caplog):
  for i in range(6):
    flat(tmp_path / f"{i}.png", i, (64, 64) if i < 3 else (130, 130))
  with caplog.at_level(logging.WARNING):
    values = [set(batch[:, 0, 0, 0]) for batch in batches(tmp_path, 8, SIZES, batch_size=6)]
  assert "3 of 6 images are large enough for crops of 128 pixels" in caplog.text
  assert values[0] == values[1] == {0, 1, 2, 3, 4, 5}
  assert set.union(*values[2:]) == {3, 4, 5}


def test_crops_larger_than_all_images_are_refused_before_the_run(folder):
  with pytest.raises(ImageError, match="none of 10 images has sides of at least 512 pixels"):
    batches(folder, 1, ((0, 64), (1_000_000, 512)))


def test_the_schedule_starts_with_crop_size():
  sizes = crop_sizes(256, ((1_200_000, 512), (2_000_000, 768)))
  assert [crop_size_at(sizes, step) for step in (0, 1_199_999, 1_200_000, 2_500_000)] == [256, 256, 512, 768]
  assert crop_sizes(128, ()) == ((0, 128),)


@pytest.mark.parametrize("crop_size, schedule, message", [
    (100, (), "crops of 100 pixels from step 0"), (64, ((10, 72),), "crops of 72 pixels from step 10"),
    (64, ((0, 128),), "changes at step 0 after step 0"), (64, ((20, 128), (10, 192)), "changes at step 10"),
    (64, (20, 128), "crop_schedule has 20; wanted pairs"), (64, ((20, 128, 1),), "wanted pairs")])
def test_a_bad_schedule_is_refused(crop_size, schedule, message):
  with pytest.raises(ConfigError, match=message):
    crop_sizes(crop_size, schedule)


# --- several sources -----------------------------------------------------------------

def test_weights_are_the_shares_of_crops_from_the_first_batch_on(tmp_path):
  for name, value in (("a", 10), ("b", 200)):
    for i in range(3):
      flat(tmp_path / name / f"{i}.png", value)
  read = np.stack(batches(f"{tmp_path / 'a'}*0.75, {tmp_path / 'b'}*0.25", 10))
  assert [np.count_nonzero(batch[:, 0, 0, 0] == 10) for batch in read] == [3] * 10


def test_without_weights_all_images_have_the_same_probability(tmp_path):
  for i in range(6):
    flat(tmp_path / ("a" if i < 2 else "b") / f"{i}.png", i)
  read = np.stack(batches(f"{tmp_path / 'a'},{tmp_path / 'b'}", 6, downscale_probability=0.0))
  assert (np.bincount(read[:, :, 0, 0, 0].ravel()) == 4).all()


def test_batches_of_a_mixture_depend_on_the_step_alone(folder, tmp_path):
  for i in range(5):
    flat(tmp_path / "more" / f"{i}.png", i)
  mixed = f"{folder}*0.6,{tmp_path / 'more'}*0.4"
  whole = np.stack(batches(mixed, 8))
  np.testing.assert_array_equal(whole[3:], batches(mixed, 5, start=3))
  halves = [batches(mixed, 8, process_index=p, process_count=2) for p in range(2)]
  np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))


@pytest.mark.parametrize("text, message", [
    ("a*0.5,b", "some sources have a weight and some none"), ("a*0,b*1", "the weight '0' of 'a'"),
    ("a*half", "the weight 'half' of 'a'"), ("a*", "the weight '' of 'a'"), ("a,", "a source without a name"),
    ("missing", "missing: no such folder"), ("tfds:", "wanted FOLDER, tfds:NAME")])
def test_a_bad_list_of_sources_is_one_line(text, message):
  with pytest.raises((ConfigError, ImageError), match=message) as error:
    open_sources(text, "")
  assert "\n" not in str(error.value)


def test_a_folder_may_have_a_comma_and_a_star_in_its_name(tmp_path):
  flat(tmp_path / "a,b*2" / "0.png", 1)
  [(source, weight)] = open_sources(str(tmp_path / "a,b*2"), "")
  assert len(source) == 1 and weight is None


# --- what is left out ----------------------------------------------------------------

def test_a_broken_image_among_good_ones_is_named_and_counted(folder, caplog):
  (folder / "broken.jpg").write_bytes(b"not a jpeg")
  with caplog.at_level(logging.WARNING):
    kept = usable(Folder("photos", sorted(folder.iterdir())), 64)
  assert len(kept) == 10
  assert "broken.jpg" in caplog.text and "skipped 1 broken" in caplog.text


def test_images_smaller_than_the_crop_are_skipped_with_a_count(folder, caplog):
  Image.new("RGB", (63, 200)).save(folder / "small.png")
  source = Folder("photos", sorted(folder.iterdir()))
  with caplog.at_level(logging.WARNING):
    assert len(usable(source, 64)) == 10
  assert "1 with a side below 64 pixels" in caplog.text
  with pytest.raises(ImageError, match="none of 11 images is usable"):
    usable(source, 500)


def truncate(path):
  """Keeps the header of an image file, and half of the rest."""
  whole = path.read_bytes()
  path.write_bytes(whole[:len(whole) // 2])


@pytest.mark.parametrize("reading", [dict(threads=1), dict(threads=3),
                                     pytest.param(dict(workers=2), marks=pytest.mark.slow)])
def test_an_image_that_fails_in_decoding_is_replaced_and_named_and_counted_once(tmp_path, caplog, reading):
  for i in range(4):
    Image.fromarray(np.random.default_rng(i).integers(0, 64, (70, 70, 3), np.uint8) + np.uint8(64 * (i % 3))).save(
        tmp_path / f"{i}.png")
  truncate(tmp_path / "1.png")
  mixture = Mixture(open_sources(str(tmp_path), ""), ((0, 64),))
  reader = training_batches(mixture, seed=1, batch_size=4, sizes=((0, 64),), downscale_probability=0.5,
                            downscale="all", flip=True, **reading)
  with caplog.at_level(logging.WARNING):
    read = np.stack([next(reader) for _ in range(5)])
  assert caplog.text.count("1.png") == 1 and len(reader.skipped) == 1
  assert not ((read >= 64) & (read < 128)).all(axis=(2, 3, 4)).any()
  np.testing.assert_array_equal(read[2:], batches(tmp_path, 3, start=2))  # by a reader that did not know


def test_a_folder_of_images_that_all_fail_in_decoding_is_an_error_and_not_a_loop(tmp_path):
  for i in range(3):
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 70, 3), np.uint8)).save(tmp_path / f"{i}.png")
    truncate(tmp_path / f"{i}.png")
  with pytest.raises(ImageError, match=r"no crop of 64 pixels.*\.png"):
    batches(tmp_path, 1)


# --- images for evaluation -----------------------------------------------------------

def test_held_out_images_are_center_crops_spread_over_all_sources(folder):
  source = Folder("photos", sorted(folder.iterdir()))
  images = eval_images([source], 64, 2)
  assert images.shape == (2, 64, 64, 3)
  np.testing.assert_array_equal(images[1], center_crop(load_image(source.paths[5]), 64))
  np.testing.assert_array_equal(eval_images([source, source], 64, 2)[1], center_crop(load_image(source.paths[0]), 64))


def test_a_held_out_image_that_fails_in_decoding_is_named_and_replaced_by_the_next_free_one(folder, caplog):
  truncate(folder / "4.png")
  source = Folder("photos", sorted(folder.iterdir()))
  with caplog.at_level(logging.WARNING):
    assert len(eval_images([source], 64, 0)) == 9
    half = eval_images([source], 64, 5)
  assert "4.png" in caplog.text
  np.testing.assert_array_equal(half[2], center_crop(load_image(source.paths[5]), 64))


READS_UNTIL_CTRL_C = """if True:
  import contextlib, signal, sys
  from mlic_jax.data import loader, sources
  stopped = []
  signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
  with contextlib.closing(loader.training_batches(
      loader.Mixture(sources.open_sources(sys.argv[1], ""), ((0, 64),)), seed=0, batch_size=2, sizes=((0, 64),),
      downscale_probability=0.5, downscale="all", flip=True, workers=2)) as reader:
    next(reader)
    print("ready", flush=True)
    while not stopped:
      next(reader)"""


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_ends_worker_processes_without_a_word(folder):
  process = subprocess.Popen([sys.executable, "-c", READS_UNTIL_CTRL_C, str(folder)], start_new_session=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "ready\n"
  os.killpg(process.pid, signal.SIGINT)                  # as a terminal does: to the workers, too
  _, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, "")
