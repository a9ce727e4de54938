"""Tests of datasets of TFDS as training images, prepared here without a network."""
import subprocess
import sys

import numpy as np
import pytest
from test_loader import batches, flat, ten_photographs  # noqa: F401 (a fixture among them)

from mlic_jax.data.holdout import split
from mlic_jax.data.image_io import ImageError
from mlic_jax.data.image_source import LazyImages
from mlic_jax.data.loader import Mixture, eval_images, training_batches
from mlic_jax.data.sources import Records, open_sources


@pytest.fixture(scope="module")
def tiny_photos(tfds, tmp_path_factory):
  """The class of a dataset: ten images of one gray value."""
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


def gray_values(sources, count, sizes=((0, 64),), **changes):
  settings = dict(seed=1, batch_size=4, downscale_probability=0.5, downscale="lossy", flip=True)
  reader = training_batches(Mixture(sources, sizes), sizes=sizes, **(settings | changes))
  return [batch[:, 0, 0, 0] for batch in (next(reader) for _ in range(count))]


def test_a_tfds_dataset_is_read_like_a_folder(tfds_dir):
  sources, [held_out] = split("tfds:tiny_photos", "tfds:tiny_photos:validation", 0, tfds_dir)
  values = np.concatenate(gray_values(sources, 4)).reshape(2, 8)
  assert sorted(values[0]) == sorted(values[1]) == list(range(0, 80, 10))
  assert list(values[0]) != list(values[1])
  assert sorted(eval_images([held_out], 128, 0)[:, 0, 0, 0]) == [80, 90]


def test_a_tfds_reader_resumes_at_a_step_and_its_processes_share_the_batch(tfds_dir):
  sources = open_sources("tfds:tiny_photos", tfds_dir)
  values = gray_values(sources, 6)
  np.testing.assert_array_equal(values[2:], gray_values(sources, 4, start=2))
  halves = [gray_values(sources, 6, process_index=p, process_count=2) for p in range(2)]
  np.testing.assert_array_equal(values, np.concatenate(halves, axis=1))


@pytest.mark.slow
def test_worker_processes_read_a_tfds_dataset(tfds_dir):
  sources = open_sources("tfds:tiny_photos", tfds_dir)
  np.testing.assert_array_equal(gray_values(sources, 4), gray_values(sources, 4, workers=2))


def test_a_tfds_dataset_and_a_folder_are_mixed_by_weight(tfds_dir, tmp_path):
  flat(tmp_path / "white" / "0.png", 255)
  values = np.stack(gray_values(open_sources(f"tfds:tiny_photos*3,{tmp_path / 'white'}*1", tfds_dir), 8))
  assert (np.count_nonzero(values == 255, axis=1) == 1).all()
  assert sorted(values[values < 255]) == sorted(3 * list(range(0, 80, 10)))


def test_images_of_a_tfds_dataset_that_are_too_small_for_later_crops_are_replaced(tfds_dir):
  sources = open_sources("tfds:tiny_photos:train+validation", tfds_dir)
  values = gray_values(sources, 10, ((0, 64), (5, 128)), batch_size=2)
  assert sorted(np.concatenate(values[:5])) == list(range(0, 100, 10))
  assert set(np.concatenate(values[5:])) == {80, 90}
  with pytest.raises(ImageError, match="tiny_photos:train: none of 8 images has sides of at least 128 pixels"):
    gray_values(open_sources("tfds:tiny_photos:train", tfds_dir), 1, ((0, 64), (5, 128)))


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


def test_the_default_format_of_tfds_gives_the_same_images(tensorflow, tiny_photos, tfds_dir, tmp_path):
  tiny_photos(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
  for part in "train", "train[25%:75%]":
    files = []
    for where in str(tmp_path), tfds_dir:
      [(source, _)] = open_sources(f"tfds:tiny_photos:{part}", where)
      files.append([source.file(i).read() for i in range(len(source))])
    assert files[0] == files[1] and len(files[0]) in (8, 4)


def test_a_broken_record_is_a_broken_image(tfds_dir):
  [(source, _)] = open_sources("tfds:tiny_photos", tfds_dir)
  records = Records("tfds:broken", [source.examples[0], b"not an example"], "image", range(2))
  assert LazyImages(records)[0].header.short_side >= 64
  with pytest.raises(ImageError, match="tfds:broken: image 1: broken record"):
    LazyImages(records)[1]


def test_tensorflow_is_not_imported_to_train_on_a_tfds_dataset(tfds_dir):
  program = f"""if True:
    import sys
    import mlic_jax.training.loop
    assert "tensorflow" not in sys.modules
    from mlic_jax.data import sources
    from mlic_jax.data import loader
    mixture = loader.Mixture(sources.open_sources("tfds:tiny_photos", {tfds_dir!r}), ((0, 64),))
    reader = loader.training_batches(mixture, seed=0, batch_size=2, sizes=((0, 64),), downscale_probability=0.5,
                                    downscale="all", flip=True)
    assert next(reader).shape == (2, 64, 64, 3)
    assert "tensorflow" not in sys.modules"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
