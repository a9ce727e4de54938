"""The photographs an evaluation runs on: the sample photographs, a folder, or a prepared TFDS dataset."""
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlic_jax.evaluation.journal import digest
from mlic_jax.images import ImageError, list_images, load_image

# Colour photographs in the wheel of scikit-image: few, because every new padded size is compiled; and no
# rocket.jpg, because what was a JPEG before flatters JPEG.
SAMPLE_PHOTOGRAPHS = ("astronaut.png", "coffee.png")


class Photographs(NamedTuple):
  """A set of images in a fixed order, read one at a time, as often as wanted."""
  title: str
  size: int
  read: Callable[[], Iterator[tuple[str, np.ndarray]]]   # name, (H, W, 3) uint8; ImageError for a broken one


def open_photographs(data: str | None, limit: int | None = None) -> Photographs:
  """The first `limit` images of `data`; ImageError, in one line, when there is nothing to read.

  None: the sample photographs; "tfds:NAME[:SPLIT]": a prepared dataset; anything else: a folder.
  """
  if data is None:
    return _from_files("sample photographs of scikit-image", _sample_folder(), SAMPLE_PHOTOGRAPHS[:limit])
  if data.startswith("tfds:"):
    return _from_tfds(data, limit)
  names = [path.relative_to(data).as_posix() for path in list_images(data)]
  return _from_files(Path(data).resolve().name, Path(data), names[:limit])


def survey(photographs: Photographs) -> dict[str, str]:
  """The digest of the pixels of every image, by name, from reading all; ImageError for the first broken one."""
  return {name: digest(image) for name, image in photographs.read()}


def _from_files(title: str, folder: Path, names) -> Photographs:
  return Photographs(title, len(names), lambda: ((name, load_image(folder / name)) for name in names))


def _sample_folder() -> Path:
  """Where scikit-image keeps its images; not imported, which takes a second for nothing else."""
  package = importlib.util.find_spec("skimage")
  if package is None:
    raise ImageError("the sample photographs come with scikit-image, which is not installed; wanted --data")
  return Path(package.origin).parent / "data"


def _from_tfds(data: str, limit: int | None) -> Photographs:
  """Feature "image" of one split, in file order; nothing is downloaded.

  The name may carry a version (tfds:NAME:1.0.0:SPLIT), the split a slice (test[:10]). Without a split it is
  "test", or, where there is none, "validation", or the first.
  """
  name, split = re.fullmatch(r"tfds:([^:]*(?::\d+\.\d+\.\d+)?)(?::(.*))?", data).groups()
  import tensorflow_datasets as tfds  # here, because only this source needs it, and it is slow to import

  try:
    builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise ImageError(f"{data}: {str(error).splitlines()[0]}; wanted tfds:NAME[:SPLIT]") from None
  if not builder.is_prepared():
    raise ImageError(f"{data}: not prepared in {builder.data_dir}; prepare it with "
                     f"`tfds build {name}`, or point TFDS_DATA_DIR to where it is")
  splits = list(builder.info.splits)
  split = split or next((each for each in ("test", "validation") if each in splits), splits[0])
  if "image" not in builder.info.features:
    raise ImageError(f'{data}: has the features {", ".join(builder.info.features)}; wanted "image"')
  try:
    size = builder.info.splits[split].num_examples
  except (KeyError, ValueError):
    raise ImageError(f"{data}: no split {split!r}; wanted one of {', '.join(splits)}") from None
  size = size if limit is None else min(size, limit)

  def read():
    for index, image in zip(range(size), _tfds_images(tfds, builder, split)):
      yield f"{name}/{split}/{index:05d}", _rgb(image, f"{data}: image {index}")

  return Photographs(data, size, read)


def _tfds_images(tfds, builder, split: str) -> Iterator[np.ndarray]:
  if builder.info.file_format in tfds.core.FileFormat.with_random_access():
    return (example["image"] for example in builder.as_data_source(split))
  import tensorflow as tf
  tf.config.set_visible_devices([], "GPU")               # the accelerator belongs to JAX
  only_image = tfds.decode.PartialDecoding({"image": True})
  dataset = builder.as_dataset(split=split, decoders=only_image, shuffle_files=False)
  return (example["image"] for example in tfds.as_numpy(dataset))


def _rgb(image: np.ndarray, name: str) -> np.ndarray:
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
    raise ImageError(f"{name} is {image.shape} {image.dtype}; wanted (H, W, 3) or (H, W, 1) uint8")
  return np.broadcast_to(image, (*image.shape[:2], 3))
