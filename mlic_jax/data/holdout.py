"""Held-out images: the split of a source into training and evaluation, which is stable over restarts of a run.

A hash of the relative path of an image decides, so that the split stays when images are added. If a folder is given by
another path, the names change. A run therefore records its held-out images with a digest of their content, and uses
this record as long as it finds the images.
"""

import collections
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlic_jax.data.image_io import ImageError
from mlic_jax.data.sources import Folder, Source, WeightedSource, open_sources

log = logging.getLogger(__name__)

BLOCK = 32768  # bytes that a digest reads at the beginning, in the middle and at the end of a file


class HeldOut(NamedTuple):
  """A held-out image: its name, and "SIZE-HASH" of its file, which is "" if the file is remote or in a dataset."""
  name: str
  digest: str


def split(data_dir: str, eval_dir: str, holdout_every: int, tfds_dir: str = "",
          recorded: Sequence[HeldOut] = ()) -> tuple[list[WeightedSource], list[Source]]:
  """Returns the sources for training and the held-out sources; sources.py says what `data_dir` and `eval_dir` may be.

  The held-out images are those of `eval_dir`, or, if that is "", one in `holdout_every` of each source of `data_dir`.
  `recorded` are the held-out images of earlier starts of the run. They stay held out under new names.
  ImageError or ConfigError if a source is missing or empty, or if no image is left for training or for evaluation."""
  if not data_dir:
    raise ImageError("data_dir is empty; wanted a folder of images: --config.data_dir=FOLDER, or =tfds:NAME")
  sources = open_sources(data_dir, tfds_dir)
  if eval_dir:
    held_out = [source for source, _ in open_sources(eval_dir, tfds_dir)]
    is_held_out = [np.zeros(len(source), bool) for source, _ in sources]
  else:
    if holdout_every < 2:
      raise ImageError(f"holdout_every={holdout_every}; wanted at least 2, or a folder in eval_dir")
    is_held_out = [_by_name(source, holdout_every) for source, _ in sources]
    held_out = _select(sources, is_held_out)
  if missing := _missing(recorded, held_out):
    rest = _select(sources, [~each for each in is_held_out])
    if sum(each.sum() for each in _found(missing, rest)):
      is_held_out = _found(recorded, [source for source, _ in sources])
      held_out = held_out if eval_dir else _select(sources, is_held_out)
      log.warning("%s: images that were held out have other names than before; the same ones stay held out", data_dir)
  train = [WeightedSource(source.take(np.flatnonzero(~each).tolist()), weight)
           for (source, weight), each in zip(sources, is_held_out)]
  for purpose, left in (("evaluation", held_out), ("training", [source for source, _ in train])):
    if not sum(map(len, left)):
      count = sum(len(source) for source, _ in sources)
      raise ImageError(f"{data_dir}: {count} images, none left for {purpose} with holdout_every={holdout_every}; "
                       f"wanted more images, another holdout_every, or a folder in eval_dir")
  return [each for each in train if len(each.source)], held_out


def names(sources: Sequence[Source]) -> list[str]:
  """Returns the names of all images of `sources`, each with the name of its source in front."""
  return [_name(source, i) for source in sources for i in range(len(source))]


def held_out_records(sources: Sequence[Source]) -> list[HeldOut]:
  """Returns the records of all images of `sources`."""
  return [HeldOut(_name(source, i), _digest(source, i)) for source in sources for i in range(len(source))]


def _name(source: Source, index: int) -> str:
  return f"{Path(source.name).name}/{source.key(index)}"


def _by_name(source: Source, holdout_every: int) -> np.ndarray:
  return np.array([_hash(source.key(i)) % holdout_every == 0 for i in range(len(source))], bool)


def _hash(name: str) -> int:
  return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


def _select(sources: Sequence[WeightedSource], chosen: Sequence[np.ndarray]) -> list[Source]:
  return [source.take(np.flatnonzero(each).tolist()) for (source, _), each in zip(sources, chosen) if each.any()]


def _missing(recorded: Sequence[HeldOut], held_out: Sequence[Source]) -> list[HeldOut]:
  """Returns the recorded images that are not in `held_out` now."""
  if not recorded:
    return []
  now = held_out_records(held_out)
  known = {image.name for image in now} | {image.digest for image in now if image.digest}
  return [image for image in recorded if not {image.name, image.digest} & known]


def _found(wanted: Sequence[HeldOut], sources: Sequence[Source]) -> list[np.ndarray]:
  """Returns masks (n,) bool of the wanted images in each source, found by content, or by name without a digest."""
  digests = {image.digest for image in wanted if image.digest}
  sizes = {int(digest.partition("-")[0]) for digest in digests}
  named = collections.defaultdict(list)  # {name without folders: names}
  for image in wanted:
    if not image.digest:
      named[image.name.rpartition("/")[2]].append(image.name)

  def matches(source: Source, index: int) -> bool:
    if isinstance(source, Folder) and source.headers_are_cheap and _size(source, index) in sizes and (
        _digest(source, index) in digests):
      return True
    name = _name(source, index)
    ends = lambda long, short: long == short or long.endswith(f"/{short}")
    return any(ends(name, each) or ends(each, name) for each in named.get(name.rpartition("/")[2], ()))

  return [np.array([matches(source, i) for i in range(len(source))], bool) for source in sources]


def _size(source: Folder, index: int) -> int:
  return _read(source, index, lambda path: path.stat().st_size, -1)


def _digest(source: Source, index: int) -> str:
  """Returns "SIZE-HASH" of a local file; "" for other files, which would have to be read in full."""
  return _read(source, index, _content, "") if isinstance(source, Folder) and source.headers_are_cheap else ""


def _content(path: Path) -> str:
  size, digest = path.stat().st_size, hashlib.sha256()
  with path.open("rb") as file:
    for offset in (0, max(0, (size - BLOCK) // 2), max(0, size - BLOCK)):
      file.seek(offset)
      digest.update(file.read(BLOCK))
  return f"{size}-{digest.hexdigest()[:32]}"


def _read(source: Folder, index: int, read: Callable, otherwise):
  try:
    return read(source.paths[index])
  except OSError:  # the error is reported when the image is read
    return otherwise
