"""The images of an evaluation: sample images, a folder, or a prepared TFDS dataset."""
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlic_jax.console import printable
from mlic_jax.data.image_io import ImageError, list_images, load_image
from mlic_jax.data.sources import Folder, open_tfds
from mlic_jax.evaluation.results_cache import digest
from mlic_jax.paths import as_path, is_remote, readable

log = logging.getLogger(__name__)

# Color photographs in the wheel of scikit-image: few, because each padded size is compiled, and without rocket.jpg,
# because an image that was a JPEG file favors JPEG.
SAMPLE_IMAGES = ("astronaut.png", "coffee.png")


class Dataset(NamedTuple):
  """Images in a fixed order, which are read one at a time, any number of times.

  Names are unique and one line each, whatever the files are called."""
  title: str
  size: int
  read: Callable[[], Iterator[tuple[str, np.ndarray]]]   # yields (name, (H, W, 3) uint8); ImageError if one is damaged


def open_dataset(data: str | None, limit: int | None = None,
                 warn: Callable[[str], None] = log.warning) -> Dataset:
  """Opens the first `limit` images of `data`. ImageError if there is none.

  `data` is None for the sample images, "tfds:NAME[:SPLIT]" for a prepared dataset, or a folder. For a folder, `warn` is
  called with a line about images that are left out.
  """
  if data is None:
    samples = {name: _sample_folder() / name for name in SAMPLE_IMAGES[:limit]}
    return _from_files("sample images of scikit-image", samples)
  if data.startswith("tfds:"):
    return _from_tfds(data, limit)
  source, folder = Folder(data, list_images(data, warn)[:limit]), as_path(data)
  # Backslashes are doubled, so that an escaped byte or new line is not the name of another file.
  names = [printable(source.key(i).replace("\\", "\\\\")) for i in range(len(source))]
  title = folder.name if is_remote(folder) else folder.resolve().name
  return _from_files(printable(title), dict(zip(names, source.paths)))


def check_images(images: Dataset, check: Callable[[np.ndarray], None]) -> dict[str, str]:
  """Reads all images and returns the digests of their pixels by name.

  ImageError for the first image that is damaged, or that `check` refuses with a ValueError.
  """
  digests = {}
  for name, image in images.read():
    try:
      check(image)
    except ValueError as error:
      raise ImageError(f"{name}: {error}") from error
    digests[name] = digest(image)
  return digests


def _from_files(title: str, paths: dict[str, Path]) -> Dataset:
  return Dataset(title, len(paths), lambda: ((name, load_image(readable(path))) for name, path in paths.items()))


def _sample_folder() -> Path:
  """Returns the folder of scikit-image's images without importing the package, which takes a second."""
  package = importlib.util.find_spec("skimage")
  if package is None or package.origin is None:
    raise ImageError("the sample images need scikit-image, which is not installed; wanted --data or pip install "
                     "scikit-image")
  return Path(package.origin).parent / "data"


def _from_tfds(data: str, limit: int | None) -> Dataset:
  """Opens one split in file order: the named one, or else the first that exists of "test", "validation" and others."""
  records = open_tfds(data, os.environ.get("TFDS_DATA_DIR", ""), splits=("test", "validation"))
  size, name = len(records) if limit is None else min(len(records), limit), data.removeprefix("tfds:")
  return Dataset(data, size, lambda: ((f"{name}/{i:05d}", load_image(records.file(i))) for i in range(size)))
