"""Training data: batches of random crops (B, crop, crop, 3) uint8 from sources of images.

Batch t is a pure function of (images, seed, t): the order is a seeded shuffle in each epoch of each source, and crop
number t * batch_size + i has its own random generator. A resumed run therefore starts at the batch of its step, without
a saved position, and the numbers of threads, worker processes and hosts do not matter. This module does not use jax, so
that worker processes do not open a device.
"""

import contextlib
import itertools
import logging
import signal
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from mlic_jax.data.augment import center_crop, random_crop
from mlic_jax.data.image_io import ImageError
from mlic_jax.data.image_source import Header, LazyImages, read_header
from mlic_jax.data.sources import Source, WeightedSource
from mlic_jax.errors import ConfigError
from mlic_jax.subprocess_signals import ignore_signals_in_children

log = logging.getLogger(__name__)

DOWNSCALE = ("all", "lossy")
MAX_REDRAWS = 10_000   # draws for a crop, if images are broken or too small, before an error
MAX_CROPS = 2**48      # crops of a run, because grain cannot count an infinite dataset with batches of one crop
MAX_LOOKED_AT = 1_000  # records that are checked for a sufficient size before a run

CropSizes = Sequence[tuple[int, int]]


def crop_sizes(crop_size: int, crop_schedule: CropSizes, multiple: int = 64) -> CropSizes:
  """Return ((0, crop_size), *crop_schedule), pairs of a step and the side of the crops from this step on.

  ConfigError unless the steps increase and the sides are positive multiples of `multiple`."""
  for stage in crop_schedule:
    if not isinstance(stage, Sequence) or [type(number) for number in stage] != [int, int]:
      raise ConfigError(f"crop_schedule has {stage!r}; wanted pairs of a step and a crop size, as in ((1200000, 512),)")
  sizes = ((0, crop_size), *((step, size) for step, size in crop_schedule))
  for (before, _), (step, _) in itertools.pairwise(sizes):
    if step <= before:
      raise ConfigError(f"crop_schedule changes at step {step} after step {before}; wanted steps that increase from 0")
  for step, size in sizes:
    if size < multiple or size % multiple:
      raise ConfigError(f"crops of {size} pixels from step {step} on; wanted a positive multiple of {multiple}")
  return sizes


def crop_size_at(sizes: CropSizes, step: int) -> int:
  """Return the side of the crops at `step`, in pixels."""
  return next(size for start, size in reversed(sizes) if start <= step)


def usable(source: Source, min_side: int, cache_bytes: int = 0) -> LazyImages:
  """Return the images of a source with a valid header and sides of at least `min_side` pixels.

  Smaller images are left out, because interpolated pixels are smoother than natural images. Broken files are named, and
  small ones are counted, in a warning. Sources without cheap headers are not filtered; their images are checked when
  they are read. ImageError if no image is left."""
  if not source.headers_are_cheap:
    return LazyImages(source, cache_bytes)
  headers: dict[int, Header] = {}
  broken = small = 0
  for index in range(len(source)):
    try:
      header = read_header(source.file(index))
    except ImageError as error:
      log.warning("skipped %s", error)
      broken += 1
      continue
    if header.short_side < min_side:
      small += 1
    else:
      headers[index] = header
  if broken or small:
    log.warning("%s: using %d of %d images: skipped %d broken, %d with a side below %d pixels",
                source.name, len(headers), len(source), broken, small, min_side)
  if not headers:
    raise ImageError(f"{source.name}: none of {len(source)} images is usable: {broken} broken, {small} with a side "
                     f"below {min_side} pixels; wanted images of at least {min_side}x{min_side}")
  return LazyImages(source.take(list(headers)), cache_bytes, dict(enumerate(headers.values())))


class Mixture:
  """Images of several sources, with the share of each source in the crops."""

  def __init__(self, sources: Sequence[WeightedSource], sizes: CropSizes, cache_bytes: int = 0):
    """Without weights all images have the same probability. `cache_bytes` is the size of the caches of all sources.

    ImageError if a source has no image for the smallest or the largest crop of `sizes`."""
    smallest, largest = min(size for _, size in sizes), max(size for _, size in sizes)
    self.parts = [usable(source, smallest) for source, _ in sources]
    weights = [len(part) if weight is None else weight for part, (_, weight) in zip(self.parts, sources)]
    self.shares = [weight / sum(weights) for weight in weights]
    for part, share in zip(self.parts, self.shares):
      part.cache_bytes = int(cache_bytes * share)
      _check_size(part, largest)

  def __len__(self) -> int:
    return sum(len(part) for part in self.parts)


def _check_size(images: LazyImages, side: int) -> None:
  """Raise an ImageError before the run if no image has sides of at least `side` pixels."""
  source, count = images.source, len(images)
  if source.headers_are_cheap:
    looked_at, found = count, sum(_is_usable(images, i, side) for i in range(count))
  else:
    looked_at = min(count, MAX_LOOKED_AT)
    found = any(_is_usable(images, i * count // looked_at, side) for i in range(looked_at))
  if not found:
    raise ImageError(f"{source.name}: none of {looked_at} images has sides of at least {side} pixels; "
                     f"wanted larger images, or smaller crops")
  if source.headers_are_cheap and found < count:
    log.warning("%s: %d of %d images are large enough for crops of %d pixels", source.name, found, count, side)


def _is_usable(images: LazyImages, index: int, side: int) -> bool:
  try:
    return images[index].header.short_side >= side
  except ImageError:
    return False


class Batches:
  """An iterator over batches of crops. `skipped` has a line for each broken image that was replaced by another one.

  Each is reported once in a warning, for all threads and worker processes."""

  def __init__(self, batches: Iterator, unpack: Callable = lambda batch: batch):
    self._batches, self._unpack = batches, unpack   # unpack: batch -> crops, lines of broken images
    self._started = False
    self.skipped: set[str] = set()

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> np.ndarray:
    with contextlib.nullcontext() if self._started else ignore_signals_in_children():  # workers start here
      crops, problems = self._unpack(next(self._batches))
    self._started = True
    for problem in problems:
      if problem not in self.skipped:
        self.skipped.add(problem)
        log.warning("skipped and replaced by another image: %s (broken so far: %d)", problem, len(self.skipped))
    return crops

  def close(self) -> None:
    """End the reading threads and worker processes. At the exit of Python they would end with tracebacks."""
    batches, self._batches = self._batches, iter(())
    if hasattr(batches, "close"):  # other iterators end with the last reference
      batches.close()


def training_batches(mixture: Mixture, *, seed: int, batch_size: int, sizes: CropSizes, downscale_probability: float,
                     downscale: str, flip: bool, start: int = 0, process_index: int = 0, process_count: int = 1,
                     threads: int = 1, workers: int = 0) -> Batches:
  """Return the infinite batches start, start + 1, ..., each (batch_size / process_count, crop, crop, 3) uint8.

  The crop is crop_size_at(sizes, t) pixels in batch t. `batch_size` is the global one; process p of n reads block p of
  each global batch. Images are decoded by `threads` in this process, or by `workers` processes if above 0. An image
  that is broken, or too small for the crops of its step, is replaced by a random one of its source."""
  if downscale not in DOWNSCALE:
    raise ConfigError(f"downscale={downscale!r}; wanted one of {', '.join(DOWNSCALE)}")

  def read(number: int, drawn: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Return a crop by its number in the run, and lines of broken images that it replaces."""
    part, index = drawn
    images = mixture.parts[part]
    problems: list[str] = []
    crop_size = crop_size_at(sizes, number // batch_size)
    for attempt in range(MAX_REDRAWS):
      # One generator per attempt, so that it does not matter whether this process knows that an image is broken.
      rng = np.random.default_rng((seed, number, attempt))
      if attempt:
        index = int(rng.integers(len(images)))
      try:
        image = images[index]
        if image.header.short_side >= crop_size:
          return random_crop(image, rng, crop_size, downscale_probability=downscale_probability,
                             downscale=downscale, flip=flip), problems
      except ImageError as error:
        problems.append(str(error))
    raise ImageError(f"{images.source.name}: no crop of {crop_size} pixels in {MAX_REDRAWS} images, broken or "
                     f"too small" + (f"; one of them: {problems[-1]}" if problems else ""))

  def stack(crops_and_problems) -> tuple[np.ndarray, list[str]]:
    crops, problems = zip(*crops_and_problems)
    return np.stack(crops), sum(problems, [])

  orders = [grain.MapDataset.range(len(part)).seed(seed + k).shuffle().repeat(MAX_CROPS // len(part) + 1)
            .map(lambda index, k=k: (k, index)) for k, part in enumerate(mixture.parts)]
  dataset = (grain.MapDataset.mix(orders, mixture.shares)
             .map_with_index(read)
             .batch(batch_size // process_count, batch_fn=stack))
  dataset = dataset[process_index::process_count][start:]
  read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, 2 * threads))
  batches = dataset.to_iter_dataset(read_options)
  if workers and not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # newer versions of grain read flags
  if workers:  # bytes, because arrays are sent in shared memory, where unread batches would stay
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    return Batches(iter(batches.map(_to_bytes).mp_prefetch(options, worker_init_fn=_ignore_sigint)), _from_bytes)
  return Batches(iter(batches))


def _ignore_sigint(*_) -> None:
  """Ignore Ctrl-C in a worker process, for all start methods. The main process handles it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)


def _to_bytes(batch: tuple[np.ndarray, list[str]]) -> tuple[bytes, tuple[int, ...], list[str]]:
  crops, problems = batch
  return crops.tobytes(), crops.shape, problems


def _from_bytes(batch: tuple[bytes, tuple[int, ...], list[str]]) -> tuple[np.ndarray, list[str]]:
  pixels, shape, problems = batch
  return np.frombuffer(pixels, np.uint8).reshape(shape), problems


def eval_images(sources: Sequence[Source], crop_size: int, limit: int) -> np.ndarray:
  """Return center crops (n, crop, crop, 3) uint8 of up to `limit` images (0: all), spread evenly over all sources.

  A broken image is reported, and replaced by the next one that is not selected itself, if there is one."""
  parts = [usable(source, crop_size) for source in sources]
  positions = [(part, index) for part in parts for index in range(len(part))]
  count = min(limit, len(positions)) if limit else len(positions)
  images = []
  for i in range(count):
    candidates = positions[i * len(positions) // count:(i + 1) * len(positions) // count]
    for part, index in candidates:
      try:
        image = part[index]
        if image.header.short_side >= crop_size:
          images.append(center_crop(image.decode(), crop_size))
          break
      except ImageError as error:
        log.warning("skipped in the evaluation: %s", error)
  if not images:
    raise ImageError(f"{', '.join(source.name for source in sources)}: no image for evaluation can be decoded and has "
                     f"sides of at least {crop_size} pixels")
  return np.stack(images)
