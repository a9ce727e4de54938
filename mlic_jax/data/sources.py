"""Sources of images: folders and datasets of TensorFlow Datasets, as sequences of encoded files.

    IMAGES                            a folder and its subfolders (file_listing.py), local or remote as gs://BUCKET/IMAGES
    tfds:clic                         a prepared dataset: its split "train", or its first one
    tfds:coco/2017:train[:90%]        another split
    IMAGES*0.7,tfds:clic*0.3          both, with seven crops of the first for three of the second

TFDS stores images as the original PNG or JPEG files. Records are therefore decoded like files: at a reduced size where
possible, and without TensorFlow.
"""

import difflib
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlic_jax.data.image_io import ImageError, list_images
from mlic_jax.errors import ConfigError
from mlic_jax.paths import NamedBytes, as_path, is_remote, readable

SYNTAX = "FOLDER, tfds:NAME, tfds:NAME:SPLIT, or several with weights: FOLDER*0.7,tfds:NAME*0.3"


class Folder:
  """Image files. `headers_are_cheap` means that the size of an image is known without reading the whole file."""

  def __init__(self, name: str, paths: Sequence[Path]):
    self.name, self.paths = name, list(paths)
    self.headers_are_cheap = not is_remote(name)

  def __len__(self) -> int:
    return len(self.paths)

  def file(self, index: int) -> Path | NamedBytes:
    """Return the argument for image_io.load_image. ImageError if a remote file cannot be read."""
    try:
      return readable(self.paths[index])
    except OSError as error:
      raise ImageError(f"{self.paths[index]}: cannot be read ({' '.join(str(error).split())})") from error

  def key(self, index: int) -> str:
    """Return the name of an image in its source, which does not depend on the path of the source."""
    path, folder = self.paths[index], as_path(self.name)
    if not is_remote(folder):                              # paths in the folder "." have no prefix
      return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    return str(path).removeprefix(f"{folder}/") if str(path).startswith(f"{folder}/") else path.name

  def take(self, indices: Sequence[int]) -> "Folder":
    """Return a source of these images only."""
    return Folder(self.name, [self.paths[i] for i in indices])


class Records:
  """Records of a prepared TFDS dataset: serialized tf.train.Example with random access, and their image feature."""
  headers_are_cheap = False

  def __init__(self, name: str, examples: Sequence[bytes], feature: str, indices: Sequence[int]):
    self.name, self.examples, self.feature, self.indices = name, examples, feature, indices

  def __len__(self) -> int:
    return len(self.indices)

  def file(self, index: int) -> NamedBytes:
    """Return the argument for image_io.load_image. ImageError if the record is broken."""
    from tensorflow_datasets.proto import tf_example_pb2  # slow to import; folders do not need it
    index = int(self.indices[index])
    name = f"{self.name}: image {index}"
    try:
      example = tf_example_pb2.Example.FromString(self.examples[index])
      content = example.features.feature[self.feature].bytes_list.value[0]
    except Exception as error:  # array_record and protobuf raise their own errors
      raise ImageError(f"{name}: broken record ({' '.join(str(error).split())})") from error
    return NamedBytes(content, name)

  def key(self, index: int) -> str:
    """Return the name of an image in its source, which does not depend on the path of the source."""
    return f"record {self.indices[index]}"

  def take(self, indices: Sequence[int]) -> "Records":
    """Return a source of these images only."""
    return Records(self.name, self.examples, self.feature, [self.indices[i] for i in indices])


class TfRecords:
  """Random access to the records of TFRecord files, the default format of TFDS.

  Each record follows its length, so one scan over the lengths finds all records. `instructions` are those of TFDS:
  filename, skip, take."""
  HEAD, TAIL = struct.Struct("<Q4x"), 4  # length and its checksum; checksum of the record

  def __init__(self, instructions):
    self._records: list[tuple[str, int, int]] = []  # file, offset, length
    for each in instructions:
      records: list[tuple[str, int, int]] = []
      with as_path(each.filename).open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        while len(head := file.read(self.HEAD.size)) == self.HEAD.size:
          offset, (length,) = file.tell(), self.HEAD.unpack(head)
          if offset + length + self.TAIL > end:
            raise ImageError(f"{each.filename}: damaged: record {len(records)} ends behind the end of the file")
          records.append((str(each.filename), offset, length))
          file.seek(length + self.TAIL, 1)
      self._records += records[each.skip:each.skip + each.take]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> bytes:
    filename, offset, length = self._records[index]
    with as_path(filename).open("rb") as file:
      file.seek(offset)
      return file.read(length)


Source = Folder | Records


class WeightedSource(NamedTuple):
  """A source and its weight in the mixture of crops. The weights of all sources are numbers, or all are None."""
  source: Source
  weight: float | None


def open_sources(text: str, tfds_dir: str) -> list[WeightedSource]:
  """Return the sources in `text`, see above. `tfds_dir` is the folder of datasets, "" for the default of TFDS.

  ConfigError or ImageError in one line for invalid text, and for missing or unprepared sources."""
  if Path(text).is_dir():  # its name may have a comma or a star
    return [WeightedSource(_open(text, tfds_dir), None)]
  named = [_name_and_weight(part.strip(), text) for part in text.split(",")]
  if len({weight is None for _, weight in named}) > 1:
    raise ConfigError(f"{text}: some sources have a weight and some none; wanted {SYNTAX}")
  return [WeightedSource(_open(name, tfds_dir), weight) for name, weight in named]


def _name_and_weight(part: str, text: str) -> tuple[str, float | None]:
  match = re.fullmatch(r"(.+?)(?:\*([^*]*))?", part)
  if not match:
    raise ConfigError(f"{text}: a source without a name; wanted {SYNTAX}")
  name, weight = match.groups()
  if weight is None:
    return name, None
  if not re.fullmatch(r"\d*\.?\d+(e-?\d+)?", weight) or float(weight) == 0:
    raise ConfigError(f"{text}: the weight {weight!r} of {name!r} is not a positive number; wanted {SYNTAX}")
  return name, float(weight)


def _open(name: str, tfds_dir: str) -> Source:
  return open_tfds(name, tfds_dir) if name.startswith("tfds:") else Folder(name, list_images(name))


def open_tfds(text: str, tfds_dir: str, splits: Sequence[str] = ("train",)) -> Records:
  """Return the images of a prepared dataset, "tfds:NAME[:SPLIT]", in file order. It downloads nothing.

  The default split is the first of `splits` in the dataset, or its first one. Errors as in `open_sources`."""
  match = re.fullmatch(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", text)  # the name may have a version
  if not match:
    raise ConfigError(f"{text}: wanted {SYNTAX}")
  name, split = match.groups()
  builder, tfds = _prepared(text, name, tfds_dir)
  known, images = list(builder.info.splits), _image_features(builder.info.features, tfds)
  if split is None:
    split = next((each for each in splits if each in known), known[0])
  # Of several images, as in div2k, hr is the original and lr a downscaled copy.
  feature = next((each for each in ("image", "hr", *images) if each in images), None)
  if feature is None:
    raise ImageError(f"{text}: has the features {', '.join(builder.info.features or ())}; wanted an image")
  if is_remote(builder.data_dir) and "tfrecord" not in _formats(builder):
    raise ImageError(f"{text}: stored in {builder.data_dir} as array_record, which is read from local disks only; "
                     "wanted tfrecord, or a local tfds_dir")
  try:
    if "array_record" in _formats(builder) and not is_remote(builder.data_dir):
      examples = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES).data_source
    else:
      examples = TfRecords(builder.info.splits[split].file_instructions)
  except ImageError:
    raise
  except (KeyError, ValueError, AssertionError):
    raise ImageError(f"{text}: no split {split!r}; wanted one of {', '.join(known)}, or a part like "
                     f"{known[0]}[:90%]") from None
  if not len(examples):
    raise ImageError(f"{text}: holds no image; wanted a split, or a part of one, that is not empty")
  return Records(text, examples, feature, range(len(examples)))


def _prepared(text: str, name: str, tfds_dir: str):
  """Return (builder, tensorflow_datasets) of a prepared dataset in a format with random access."""
  try:
    import tensorflow_datasets as tfds  # imported here because it is slow, and folders do not need it
  except ImportError as error:
    raise ImageError(f"{text}: needs the package tensorflow-datasets ({error})") from error
  try:
    builder = tfds.builder(name, data_dir=tfds_dir or None)
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)
    near = difflib.get_close_matches(re.split("[/:]", name)[0], known, n=3, cutoff=0.5)
    nearest = f"the nearest names are {', '.join(near)}" if near else "wanted a name that `tfds` knows"
    raise ImageError(f"{text}: no such dataset{f' in {tfds_dir}' if tfds_dir else ''}; {nearest}") from error
  except Exception as error:  # an AssertionError for an unknown version, any error for damaged files
    raise ImageError(f"{text}: {' '.join(str(error).split())}") from error
  if not builder.is_prepared():
    # The program `tfds` does the same, but needs apache_beam to start.
    where = f"data_dir={tfds_dir!r}, " if tfds_dir else ""
    raise ImageError(f"{text}: not prepared in {builder.data_dir}; prepare it with "
                     f"python -c \"import tensorflow_datasets as tfds; tfds.builder({name!r}, {where}"
                     f"file_format='array_record').download_and_prepare()\", "
                     f"or point TFDS_DATA_DIR (in training: tfds_dir) to where it is")
  if not _formats(builder) & {"array_record", "tfrecord"}:
    raise ImageError(f"{text}: stored in {builder.data_dir} as {', '.join(sorted(_formats(builder)))}; wanted "
                     f"array_record or tfrecord")
  return builder, tfds


def _formats(builder) -> set[str]:
  return {each.value for each in builder.info.available_file_formats()}


def _image_features(features, tfds) -> list[str]:
  """Return the names of the image features."""
  return [name for name, feature in (features or {}).items() if isinstance(feature, tfds.features.Image)]
