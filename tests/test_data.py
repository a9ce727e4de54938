"""Claims about the training data: what is skipped and said, what a crop is, and that batch t depends on t alone."""
import logging
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mlic_jax.images import ImageError, load_image
from mlic_jax.sources import Folder, Records, open_sources
from mlic_jax.training import ConfigError
from mlic_jax.training.augment import center_crop, random_crop
from mlic_jax.training.data import (
  Mixture,
  crop_size_at,
  crop_sizes,
  eval_images,
  split,
  training_batches,
  usable,
)
from mlic_jax.training.photographs import Header, Photograph, Photographs, read_header


@pytest.fixture
def folder(tmp_path):
  """Ten photographs in several formats and sizes, all sides at least 80."""
  rng = np.random.default_rng(0)
  (tmp_path / "photos").mkdir()
  for i in range(10):
    pixels = rng.integers(0, 256, (80 + 7 * i, 130 - 5 * i, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.{('jpg', 'png', 'webp')[i % 3]}")
  return tmp_path / "photos"


def flat(path, value, size=(64, 64)):
  """A photograph of one grey value, which tells where a crop came from."""
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


def test_a_reader_started_at_batch_t_goes_on_as_the_first_one_would_have(folder):
  np.testing.assert_array_equal(batches(folder, 12)[5:], batches(folder, 7, start=5))


def test_threads_and_the_cache_do_not_change_the_batches(folder):
  np.testing.assert_array_equal(batches(folder, 8), batches(folder, 8, cache_bytes=10**8, threads=3))


@pytest.mark.slow
def test_worker_processes_do_not_change_the_batches(folder):
  np.testing.assert_array_equal(batches(folder, 4), batches(folder, 4, workers=2))


def test_the_blocks_of_two_processes_make_the_global_batch(folder):
  halves = [batches(folder, 4, process_index=p, process_count=2) for p in range(2)]
  np.testing.assert_array_equal(batches(folder, 4), np.concatenate(halves, axis=1))


def test_an_epoch_sees_every_photograph_once_and_the_next_in_another_order(tmp_path):
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


def test_photographs_too_small_for_later_crops_are_read_before_and_replaced_after(tmp_path, caplog):
  for i in range(6):
    flat(tmp_path / f"{i}.png", i, (64, 64) if i < 3 else (130, 130))
  with caplog.at_level(logging.WARNING):
    values = [set(batch[:, 0, 0, 0]) for batch in batches(tmp_path, 8, SIZES, batch_size=6)]
  assert "3 of 6 images are large enough for crops of 128 pixels" in caplog.text
  assert values[0] == values[1] == {0, 1, 2, 3, 4, 5}
  assert set.union(*values[2:]) == {3, 4, 5}


def test_crops_that_no_photograph_is_large_enough_for_are_refused_before_the_run(folder):
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


def test_without_weights_every_photograph_counts_the_same(tmp_path):
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


# --- training and held-out photographs -----------------------------------------------

def test_every_nth_image_of_each_source_is_held_out_unless_there_are_others_for_it(folder, tmp_path):
  for i in range(4):
    flat(tmp_path / "few" / f"{i}.png", i)
  both = f"{folder}*1,{tmp_path / 'few'}*3"
  [(train, weight), (few, few_weight)], [held_out] = split(both, "", 5)
  assert [path.stem for path in held_out.paths] == ["4", "9"]
  assert (len(train), weight, len(few), few_weight) == (8, 1.0, 4, 3.0)
  [(train, _)], held_out = split(str(folder), both.replace("*1", "").replace("*3", ""), 5)
  assert len(train) == 10 and [len(source) for source in held_out] == [10, 4]


@pytest.mark.parametrize("data_dir, holdout_every, message", [
    ("", 5, "data_dir is empty"), ("missing", 5, "no such folder"), (".", 5, "holds no image"),
    ("photographs", 500, "none left for evaluation"), ("photographs", 1, "wanted at least 2")])
def test_a_folder_that_cannot_be_trained_on_is_one_line(tmp_path, data_dir, holdout_every, message):
  flat(tmp_path / "photographs" / "a.png", 0)
  (tmp_path / "empty").mkdir()
  where = {"": "", ".": tmp_path / "empty"}.get(data_dir, tmp_path / data_dir)
  with pytest.raises(ImageError, match=message) as error:
    split(str(where), "", holdout_every)
  assert "\n" not in str(error.value)


def test_held_out_images_are_centre_crops_spread_over_all_sources(folder):
  source = Folder("photos", sorted(folder.iterdir()))
  images = eval_images([source], 64, 2)
  assert images.shape == (2, 64, 64, 3)
  np.testing.assert_array_equal(images[1], center_crop(load_image(source.paths[5]), 64))
  np.testing.assert_array_equal(eval_images([source, source], 64, 2)[1], center_crop(load_image(source.paths[0]), 64))


def test_a_held_out_image_that_fails_in_decoding_is_named_and_the_next_one_that_is_free_taken(folder, caplog):
  truncate(folder / "4.png")
  source = Folder("photos", sorted(folder.iterdir()))
  with caplog.at_level(logging.WARNING):
    assert len(eval_images([source], 64, 0)) == 9
    half = eval_images([source], 64, 5)
  assert "4.png" in caplog.text
  np.testing.assert_array_equal(half[2], center_crop(load_image(source.paths[5]), 64))


# --- crops ---------------------------------------------------------------------------

def crop_of(image, rng, downscale_probability=0.0, downscale="all", flip=False, lossy=False):
  """random_crop of 64 pixels from an array."""
  photograph = Photograph(Header(min(image.shape[:2]), lossy, False), lambda reduction: image)
  return random_crop(photograph, rng, 64, downscale_probability=downscale_probability, downscale=downscale, flip=flip)


def ramp(size):
  """(size, size, 3), column k has the value k * 256 / size."""
  columns = np.arange(0, 256, 256 // size, dtype=np.uint8)
  return np.broadcast_to(columns[None, :, None], (size, size, 3))


def test_a_crop_without_downscaling_is_a_piece_of_the_photograph():
  image = np.arange(70 * 80 * 3, dtype=np.uint8).reshape(70, 80, 3)
  crop = crop_of(image, np.random.default_rng(0))
  pieces = np.lib.stride_tricks.sliding_window_view(image, (64, 64, 3)).reshape(-1, 64, 64, 3)
  assert any((crop == piece).all() for piece in pieces)


def test_downscaling_goes_as_far_as_the_short_side_allows():
  rng = np.random.default_rng(0)
  spans = [np.ptp(crop_of(ramp(256), rng, downscale_probability=1.0)[0, :, 0]) for _ in range(200)]
  assert min(spans) < 75 and max(spans) > 240  # from a quarter of the ramp to all of it


def test_lossless_photographs_are_not_downscaled_where_only_lossy_ones_are_to_be():
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
def test_a_jpeg_decoded_smaller_is_the_photograph_made_smaller(tmp_path, orientation):
  row, column = np.mgrid[:104, :160][..., None]
  image = np.uint8(127 + 60 * np.sin(row / [9, 14, 23] + 1) + 60 * np.cos(column / [17, 8, 12]))
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(image).save(tmp_path / "0.jpg", quality=95, exif=exif)
  Image.fromarray(image[:101, :157]).save(tmp_path / "1.jpg")
  photographs = Photographs(Folder("photos", [tmp_path / "0.jpg", tmp_path / "1.jpg"]))
  whole = Image.fromarray(load_image(tmp_path / "0.jpg"))
  for reduction in (2, 4, 8):
    wanted = np.asarray(whole.resize([side // reduction for side in whole.size], Image.Resampling.BOX)).astype(int)
    np.testing.assert_allclose(photographs[0].decode(reduction), wanted, atol=12)
    assert photographs[1].decode(reduction).shape == (-(-101 // reduction), -(-157 // reduction), 3)


def test_crops_of_a_jpeg_made_smaller_cover_what_they_would_without_the_shortcut(tmp_path):
  Image.fromarray(np.repeat(np.repeat(ramp(256), 2, 0), 2, 1)).save(tmp_path / "ramp.jpg", quality=95)
  Image.fromarray(np.repeat(np.repeat(ramp(256), 2, 0), 2, 1)).save(tmp_path / "ramp.png")
  short, whole = (Photographs(Folder("photos", [tmp_path / f"ramp.{kind}"]))[0] for kind in ("jpg", "png"))
  for seed in range(20):
    crops = [random_crop(photograph, np.random.default_rng(seed), 64, downscale_probability=1.0, downscale="all",
                         flip=False)[32, :, 0].astype(int) for photograph in (short, whole)]
    assert abs(np.ptp(crops[0]) - np.ptp(crops[1])) <= 12


# --- datasets of TFDS ----------------------------------------------------------------

@pytest.fixture(scope="module")
def tiny_photos(tmp_path_factory):
  """The class of a dataset: ten images of one grey value."""
  tfds = pytest.importorskip("tensorflow_datasets")
  files = tmp_path_factory.mktemp("files")
  for i in range(10):
    flat(files / f"{i}.{'jpg' if i % 2 else 'png'}", 10 * i, (64 + 8 * i, 70 + 8 * i))

  class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "place": tfds.features.Text()})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
      return {"train": self._generate_examples(range(8)), "validation": self._generate_examples(range(8, 10))}

    def _generate_examples(self, places):
      for i in places:
        yield i, {"image": next(files.glob(f"{i}.*")), "place": str(i)}

  return TinyPhotos


@pytest.fixture(scope="module")
def tfds_dir(tiny_photos, tmp_path_factory):
  """A data_dir where tiny_photos is prepared."""
  data_dir = str(tmp_path_factory.mktemp("tfds"))
  tiny_photos(data_dir=data_dir, file_format="array_record").download_and_prepare()
  return data_dir


def grey_values(sources, count, sizes=((0, 64),), **changes):
  settings = dict(seed=1, batch_size=4, downscale_probability=0.5, downscale="lossy", flip=True)
  reader = training_batches(Mixture(sources, sizes), sizes=sizes, **(settings | changes))
  return [batch[:, 0, 0, 0] for batch in (next(reader) for _ in range(count))]


def test_a_tfds_dataset_is_read_like_a_folder(tfds_dir):
  sources, [held_out] = split("tfds:tiny_photos", "tfds:tiny_photos:validation", 0, tfds_dir)
  values = np.concatenate(grey_values(sources, 4)).reshape(2, 8)
  assert sorted(values[0]) == sorted(values[1]) == list(range(0, 80, 10))
  assert list(values[0]) != list(values[1])
  assert sorted(eval_images([held_out], 128, 0)[:, 0, 0, 0]) == [80, 90]


def test_a_tfds_reader_resumes_at_a_step_and_its_processes_share_the_batch(tfds_dir):
  sources = open_sources("tfds:tiny_photos", tfds_dir)
  values = grey_values(sources, 6)
  np.testing.assert_array_equal(values[2:], grey_values(sources, 4, start=2))
  halves = [grey_values(sources, 6, process_index=p, process_count=2) for p in range(2)]
  np.testing.assert_array_equal(values, np.concatenate(halves, axis=1))


@pytest.mark.slow
def test_worker_processes_read_a_tfds_dataset(tfds_dir):
  sources = open_sources("tfds:tiny_photos", tfds_dir)
  np.testing.assert_array_equal(grey_values(sources, 4), grey_values(sources, 4, workers=2))


def test_a_tfds_dataset_and_a_folder_are_mixed_by_weight(tfds_dir, tmp_path):
  flat(tmp_path / "white" / "0.png", 255)
  values = np.stack(grey_values(open_sources(f"tfds:tiny_photos*3,{tmp_path / 'white'}*1", tfds_dir), 8))
  assert (np.count_nonzero(values == 255, axis=1) == 1).all()
  assert sorted(values[values < 255]) == sorted(3 * list(range(0, 80, 10)))


def test_images_of_a_tfds_dataset_that_are_too_small_for_later_crops_are_replaced(tfds_dir):
  sources = open_sources("tfds:tiny_photos:train+validation", tfds_dir)
  values = grey_values(sources, 10, ((0, 64), (5, 128)), batch_size=2)
  assert sorted(np.concatenate(values[:5])) == list(range(0, 100, 10))
  assert set(np.concatenate(values[5:])) == {80, 90}
  with pytest.raises(ImageError, match="tiny_photos:train: none of 8 images has sides of at least 128 pixels"):
    grey_values(open_sources("tfds:tiny_photos:train", tfds_dir), 1, ((0, 64), (5, 128)))


def test_a_part_of_a_split_can_be_named(tfds_dir):
  values = [len(open_sources(f"tfds:tiny_photos:{part}", tfds_dir)[0].source)
            for part in ("train", "validation", "train[:25%]", "train+validation")]
  assert values == [8, 2, 2, 10]


@pytest.mark.parametrize("name, message", [
    ("tfds:div2k", r"not prepared in .*; prepare it with python -c \".*builder\('div2k', data_dir='.*', "
                   r"file_format='array_record'\).download_and_prepare\(\)\""),
    ("tfds:tiny_photo", "no such dataset.*the nearest names are tiny_photos"),
    ("tfds:tiny_photos:test", "no split 'test'; wanted one of train, validation"),
    ("tfds:div2k/bicubic", "bicubic")])
def test_a_tfds_dataset_that_is_not_there_says_what_to_do_in_one_line(tfds_dir, name, message):
  with pytest.raises(ImageError, match=message) as error:
    open_sources(name, tfds_dir)
  assert "\n" not in str(error.value)


def test_the_default_format_of_tfds_gives_the_same_images(tiny_photos, tfds_dir, tmp_path):
  pytest.importorskip("tensorflow")  # which writes it
  tiny_photos(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
  for part in "train", "train[25%:75%]":
    files = []
    for where in str(tmp_path), tfds_dir:
      [(source, _)] = open_sources(f"tfds:tiny_photos:{part}", where)
      files.append([source.file(i).read() for i in range(len(source))])
    assert files[0] == files[1] and len(files[0]) in (8, 4)


def test_a_broken_record_is_a_broken_photograph(tfds_dir):
  [(source, _)] = open_sources("tfds:tiny_photos", tfds_dir)
  records = Records("tfds:broken", [source.examples[0], b"not an example"], "image", range(2))
  assert Photographs(records)[0].header.short_side >= 64
  with pytest.raises(ImageError, match="tfds:broken: image 1: broken record"):
    Photographs(records)[1]


def test_tensorflow_is_not_imported_to_read_a_tfds_dataset(tfds_dir):
  program = f"""if True:
    import sys
    from mlic_jax import sources
    from mlic_jax.training import data
    mixture = data.Mixture(sources.open_sources("tfds:tiny_photos", {tfds_dir!r}), ((0, 64),))
    batches = data.training_batches(mixture, seed=0, batch_size=2, sizes=((0, 64),), downscale_probability=0.5,
                                    downscale="all", flip=True)
    assert next(batches).shape == (2, 64, 64, 3)
    assert "tensorflow" not in sys.modules"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
