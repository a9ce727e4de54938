"""The photographs an evaluation runs on: the sample photographs, a folder, or a prepared TFDS dataset."""
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlic_jax.data.images import ImageError, list_images, load_image
from mlic_jax.data.sources import Folder, open_tfds
from mlic_jax.evaluation.journal import digest
from mlic_jax.paths import as_path, is_remote, readable

# Colour photographs in the wheel of scikit-image: few, because every new padded size is compiled; and no
# rocket.jpg, because what was a JPEG before flatters JPEG.
SAMPLE_PHOTOGRAPHS = ("astronaut.png", "coffee.png")


class ImageSet(NamedTuple):
  """A set of images in a fixed order, read one at a time, as often as wanted."""
  title: str
  size: int
  read: Callable[[], Iterator[tuple[str, np.ndarray]]]   # name, (H, W, 3) uint8; ImageError for a broken one


def open_image_set(data: str | None, limit: int | None = None) -> ImageSet:
  """The first `limit` images of `data`; ImageError, in one line, when there is nothing to read.

  None: the sample photographs; "tfds:NAME[:SPLIT]": a prepared dataset; anything else: a folder.
  """
  if data is None:
    return _from_files("sample photographs of scikit-image", _sample_folder(), SAMPLE_PHOTOGRAPHS[:limit])
  if data.startswith("tfds:"):
    return _from_tfds(data, limit)
  source = Folder(data, list_images(data))
  names = [source.key(i) for i in range(len(source))]
  folder = as_path(data)
  return _from_files(folder.name if is_remote(folder) else folder.resolve().name, folder, names[:limit])


def survey(photographs: ImageSet) -> dict[str, str]:
  """The digest of the pixels of every image, by name, from reading all; ImageError for the first broken one."""
  return {name: digest(image) for name, image in photographs.read()}


def _from_files(title: str, folder: Path, names) -> ImageSet:
  return ImageSet(title, len(names), lambda: ((name, load_image(readable(folder / name))) for name in names))


def _sample_folder() -> Path:
  """Where scikit-image keeps its images; not imported, which takes a second for nothing else."""
  package = importlib.util.find_spec("skimage")
  if package is None:
    raise ImageError("the sample photographs come with scikit-image, which is not installed; wanted --data")
  return Path(package.origin).parent / "data"


def _from_tfds(data: str, limit: int | None) -> ImageSet:
  """One split, in file order: without a name "test", or, where there is none, "validation", or the first."""
  records = open_tfds(data, os.environ.get("TFDS_DATA_DIR", ""), splits=("test", "validation"))
  size, name = len(records) if limit is None else min(len(records), limit), data.removeprefix("tfds:")
  return ImageSet(data, size, lambda: ((f"{name}/{i:05d}", load_image(records.file(i))) for i in range(size)))
