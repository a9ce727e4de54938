"""Tests of the images of an evaluation: sample images, folders and TFDS."""

import importlib.util

import numpy as np
import pytest
from test_eval import IMAGE, two_photographs  # noqa: F401 (a fixture)

from mlic_jax.data.image_io import ImageError, save_image
from mlic_jax.evaluation import dataset


def test_the_sample_photographs_are_in_the_wheel_of_scikit_image_and_in_color():
  samples = dataset.open_dataset(None)
  images = dict(samples.read())
  assert len(images) == samples.size >= 2
  for image in images.values():
    assert min(image.shape[:2]) >= 300 and image.std(axis=-1).mean() > 5


def test_a_folder_is_read_in_order_by_relative_names_up_to_the_limit(folder):
  (folder / "A").mkdir()
  save_image(folder / "A" / "c.png", IMAGE[:9])
  everything = dataset.open_dataset(str(folder))
  assert [name for name, _ in everything.read()] == ["A/c.png", "a.png", "b.png"]
  first = dataset.open_dataset(str(folder), limit=1)
  assert first.size == 1 and [image.shape for _, image in first.read()] == [(9, 100, 3)]


@pytest.fixture(scope="module")
def tfds_folder(tfds, tmp_path_factory):
  """A dataset "mlic_jax_tiny", prepared as array_record (version 1.0.0) and, with TensorFlow, as TFRecord (2.0.0)."""
  files = tmp_path_factory.mktemp("files")

  class MlicJaxTiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SUPPORTED_VERSIONS = [tfds.core.Version("2.0.0")]  # noqa: RUF012 (TFDS adds it to a list)
    pkg_dir_path = tmp_path_factory.mktemp("package")    # where TFDS looks for a README

    def _info(self):
      features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": np.int64}
      return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download_manager):
      return {"train": self._generate_examples(1), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
      for i in range(count):
        save_image(files / f"{i}.png", IMAGE[:20 + i])  # an array would want TensorFlow to encode it
        yield i, {"image": files / f"{i}.png", "label": i}

  place = tmp_path_factory.mktemp("tfds")
  formats = [("1.0.0", "array_record"), ("2.0.0", "tfrecord")]
  for version, file_format in formats if importlib.util.find_spec("tensorflow") else formats[:1]:
    MlicJaxTiny(data_dir=place, version=version, file_format=file_format).download_and_prepare()
  return place


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_a_prepared_tfds_dataset_is_read_by_its_image_feature(request, tfds_folder, monkeypatch, version):
  if version == "2.0.0":
    request.getfixturevalue("tensorflow")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  test = dataset.open_dataset(f"tfds:mlic_jax_tiny:{version}")
  assert test.size == 3 and len({name for name, _ in test.read()}) == 3
  assert sorted(image.shape for _, image in test.read()) == [(20, 100, 3), (21, 100, 3), (22, 100, 3)]
  for _, image in test.read():
    np.testing.assert_array_equal(image, IMAGE[:image.shape[0]])
  assert dataset.open_dataset(f"tfds:mlic_jax_tiny:{version}:train").size == 1
  assert dataset.open_dataset(f"tfds:mlic_jax_tiny:{version}:test[:2]").size == 2
  assert len(list(dataset.open_dataset(f"tfds:mlic_jax_tiny:{version}", limit=2).read())) == 2


@pytest.mark.parametrize("name, message", [
    ("tfds:mlic_jax_tiny:1.0.0:validation", "no split 'validation'; wanted one of "),
    ("tfds:mnist", r"not prepared in .*; prepare it with .*builder\('mnist'"),
    ("tfds:no_such_dataset", "no such dataset")])
def test_a_tfds_dataset_that_is_not_there_is_one_line(tfds_folder, monkeypatch, name, message):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  with pytest.raises(ImageError, match=message) as error:
    dataset.open_dataset(name)
  assert "\n" not in str(error.value)
