"""Training data: a folder of photographs -> batches of random crops, (B, crop, crop, 3) uint8.

Batch t is a pure function of (files, seed, t): the order is a seeded shuffle of each epoch, and every crop draws
from its own generator. A resumed run therefore starts reading at the batch of its step and nothing about the
position has to be saved; how many threads or worker processes read does not matter either.
This module imports no jax, so that worker processes stay light.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from PIL import Image

from mlic_jax.images import MODES, ImageError, list_images, load_image

log = logging.getLogger(__name__)


def split_folder(data_dir: str, eval_dir: str, holdout_every: int) -> tuple[list[Path], list[Path]]:
  """(training files, held-out files), both sorted.

  The held-out files are those of `eval_dir`, or when that is "" every `holdout_every`-th file of `data_dir`.
  ImageError when a folder is missing or empty, or too small to hold anything out."""
  if not data_dir:
    raise ImageError("data_dir is empty; wanted a folder of photographs: --config.data_dir=FOLDER")
  paths = list_images(data_dir)
  if eval_dir:
    return paths, list_images(eval_dir)
  if holdout_every < 2:
    raise ImageError(f"holdout_every={holdout_every}; wanted at least 2, or a folder in eval_dir")
  held_out = paths[holdout_every - 1::holdout_every]
  if not held_out:
    raise ImageError(f"{data_dir}: {len(paths)} images, none left for evaluation with holdout_every={holdout_every}; "
                     f"wanted more images, a smaller holdout_every, or a folder in eval_dir")
  return sorted(set(paths) - set(held_out)), held_out


def usable(paths: Sequence[Path], min_side: int) -> list[Path]:
  """The files whose header can be read and whose sides are at least `min_side` pixels.

  Smaller photographs are left out rather than enlarged: interpolated pixels are smoother than any photograph. What
  is left out is named (broken files) or counted (small ones) in a warning; ImageError when nothing remains."""
  kept, broken, small = [], 0, 0
  for path in paths:
    try:
      with Image.open(path) as image:
        size, mode = image.size, image.mode
      if mode not in MODES:
        raise OSError(f"colour mode {mode}")
    except Exception as error:  # Pillow's openers raise OSError, SyntaxError, struct.error, ... for a broken file
      log.warning("skipped %s: not readable as a photograph (%s)", path, " ".join(str(error).split()))
      broken += 1
      continue
    if min(size) < min_side:
      small += 1
    else:
      kept.append(path)
  if broken or small:
    log.warning("using %d of %d images: skipped %d broken, %d with a side below %d pixels",
                len(kept), len(paths), broken, small, min_side)
  if not kept:
    raise ImageError(f"none of {len(paths)} images is usable: {broken} broken, {small} with a side below {min_side} "
                     f"pixels; wanted photographs of at least {min_side}x{min_side}")
  return kept


class Photographs:
  """Random access to decoded photographs: index -> (H, W, 3) uint8.

  Decoded pixels are kept in memory up to `cache_bytes` (per process). A file that cannot be decoded is named once
  and stands for the next one that can."""

  def __init__(self, paths: Sequence[Path], cache_bytes: int = 0):
    self.paths = list(paths)
    self.cache_bytes = cache_bytes
    self._cache: dict[int, np.ndarray] = {}
    self._broken: set[int] = set()

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> np.ndarray:
    for i in ((index + k) % len(self.paths) for k in range(len(self.paths))):
      if i in self._cache:
        return self._cache[i]
      if i in self._broken:
        continue
      try:
        image = load_image(self.paths[i])
      except ImageError as error:
        self._broken.add(i)
        log.warning("skipped, the next image takes its place: %s", error)
        continue
      if self.cache_bytes >= image.nbytes:
        self.cache_bytes -= image.nbytes
        self._cache[i] = image
      return image
    raise ImageError(f"none of {len(self.paths)} images can be decoded; the last one is {self.paths[index]}")


def random_crop(image: np.ndarray, rng: np.random.Generator, crop_size: int, downscale_probability: float,
                flip: bool) -> np.ndarray:
  """(H, W, 3) -> (crop_size, crop_size, 3) uint8, both sides of `image` at least crop_size.

  With `downscale_probability` the photograph is first made smaller by a factor drawn uniformly between 1 and the
  one that leaves its short side at crop_size (Lanczos, antialiased; only the region of the crop is computed).
  Downscaling hides the traces of earlier lossy compression. `flip` mirrors half of the crops left to right."""
  height, width, _ = image.shape
  side = crop_size
  if rng.random() < downscale_probability:
    scale = rng.uniform(crop_size / min(height, width), 1.0)
    side = min(round(crop_size / scale), height, width)
  top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
  crop = image[top:top + side, left:left + side]
  if side != crop_size:
    crop = np.asarray(Image.fromarray(crop).resize((crop_size, crop_size), Image.Resampling.LANCZOS))
  if flip and rng.random() < 0.5:
    crop = crop[:, ::-1]
  return np.ascontiguousarray(crop)


def center_crop(image: np.ndarray, crop_size: int) -> np.ndarray:
  """The middle (crop_size, crop_size, 3) of (H, W, 3)."""
  top, left = ((side - crop_size) // 2 for side in image.shape[:2])
  return image[top:top + crop_size, left:left + crop_size]


def training_batches(photographs: Photographs, *, seed: int, batch_size: int, crop_size: int,
                     downscale_probability: float, flip: bool, start: int = 0, process_index: int = 0,
                     process_count: int = 1, threads: int = 1, workers: int = 0) -> Iterator[np.ndarray]:
  """Batches start, start + 1, ... without end, each (batch_size / process_count, crop_size, crop_size, 3) uint8.

  `batch_size` is the global one; process p of n reads block p of each global batch. `threads` decode in this
  process, or `workers` > 0 processes do."""
  dataset = (grain.MapDataset.source(photographs)
             .seed(seed).shuffle().repeat()
             .random_map(lambda image, rng: random_crop(image, rng, crop_size, downscale_probability, flip))
             .batch(batch_size // process_count))
  dataset = dataset[process_index::process_count][start:]
  read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, 2 * threads))
  batches = dataset.to_iter_dataset(read_options)
  if workers:
    batches = batches.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers))
  return iter(batches)


def eval_images(paths: Sequence[Path], crop_size: int, limit: int) -> np.ndarray:
  """Centre crops of `limit` (0: all) held-out photographs, spread evenly over `paths`: (n, crop, crop, 3) uint8."""
  if limit and limit < len(paths):
    paths = [paths[i * len(paths) // limit] for i in range(limit)]
  photographs = Photographs(paths)
  return np.stack([center_crop(photographs[i], crop_size) for i in range(len(paths))])
