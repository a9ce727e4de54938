"""Training data: sources of photographs -> batches of random crops, (B, crop, crop, 3) uint8.

Batch t is a pure function of (photographs, seed, t): the order is a seeded shuffle of each epoch of each source, and
crop number t * batch_size + i draws from a generator of its own. A resumed run therefore starts reading at the batch
of its step and nothing about the position has to be saved; how many threads, worker processes or hosts read does not
matter either.
Nothing here computes with jax, so that worker processes never touch a device.
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
from mlic_jax.data.image_source import Header, Photographs, read_header
from mlic_jax.data.sources import Source, WeightedSource
from mlic_jax.errors import ConfigError
from mlic_jax.subprocess_signals import ignore_signals_in_children

log = logging.getLogger(__name__)

DOWNSCALE = ("all", "lossy")
MOST_REDRAWS = 10_000   # of a crop whose photograph is broken or too small, before a run gives up
MOST_CROPS = 2**48      # of a run; a dataset without end is longer than grain can count, with one crop in a batch
MOST_LOOKED_AT = 1_000  # records of a dataset, before the run, for one that is large enough

CropSizes = Sequence[tuple[int, int]]


def crop_sizes(crop_size: int, crop_schedule: CropSizes, multiple: int = 64) -> CropSizes:
  """((0, crop_size), *crop_schedule): pairs of a step and the side of the crops that are read after so many steps.

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
  """Pixels of a side, after `step` steps."""
  return next(size for start, size in reversed(sizes) if start <= step)


def usable(source: Source, min_side: int, cache_bytes: int = 0) -> Photographs:
  """The photographs of a source whose header can be read and whose sides are at least `min_side` pixels.

  Smaller photographs are left out rather than enlarged: interpolated pixels are smoother than any photograph. What
  is left out is named (broken files) or counted (small ones) in a warning; ImageError when nothing remains. Of a
  source whose headers are not cheap nothing is left out; its photographs turn out to be unusable when they are read."""
  if not source.headers_are_cheap:
    return Photographs(source, cache_bytes)
  kept: dict[int, Header] = {}
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
      kept[index] = header
  if broken or small:
    log.warning("%s: using %d of %d images: skipped %d broken, %d with a side below %d pixels",
                source.name, len(kept), len(source), broken, small, min_side)
  if not kept:
    raise ImageError(f"{source.name}: none of {len(source)} images is usable: {broken} broken, {small} with a side "
                     f"below {min_side} pixels; wanted photographs of at least {min_side}x{min_side}")
  return Photographs(source.take(list(kept)), cache_bytes, dict(enumerate(kept.values())))


class Mixture:
  """Photographs of several sources, and the share of all crops that each source gives."""

  def __init__(self, sources: Sequence[WeightedSource], sizes: CropSizes, cache_bytes: int = 0):
    """Without weights every photograph counts the same. ImageError unless each source has photographs for the
    smallest and for the largest crop of `sizes`. `cache_bytes` are for the pixels of all sources."""
    smallest, largest = min(size for _, size in sizes), max(size for _, size in sizes)
    self.parts = [usable(source, smallest) for source, _ in sources]
    weights = [len(part) if weight is None else weight for part, (_, weight) in zip(self.parts, sources)]
    self.shares = [weight / sum(weights) for weight in weights]
    for part, share in zip(self.parts, self.shares):
      part.cache_bytes = int(cache_bytes * share)
      _check_size(part, largest)

  def __len__(self) -> int:
    return sum(len(part) for part in self.parts)


def _check_size(photographs: Photographs, side: int) -> None:
  """ImageError unless there is a photograph of at least this side: better before the run than in the middle of it."""
  source, count = photographs.source, len(photographs)
  if source.headers_are_cheap:
    looked_at, found = count, sum(_is_usable(photographs, i, side) for i in range(count))
  else:
    looked_at = min(count, MOST_LOOKED_AT)
    found = any(_is_usable(photographs, i * count // looked_at, side) for i in range(looked_at))
  if not found:
    raise ImageError(f"{source.name}: none of {looked_at} images has sides of at least {side} pixels; "
                     f"wanted larger photographs, or smaller crops")
  if source.headers_are_cheap and found < count:
    log.warning("%s: %d of %d images are large enough for crops of %d pixels", source.name, found, count, side)


def _is_usable(photographs: Photographs, index: int, side: int) -> bool:
  try:
    return photographs[index].header.short_side >= side
  except ImageError:
    return False


class Batches:
  """An iterator over batches of crops. `skipped` holds a line for each broken photograph that another one replaced;
  each is named once in a warning, whichever thread or worker process met it."""

  def __init__(self, batches: Iterator, unpack: Callable = lambda batch: batch):
    self._batches, self._unpack = batches, unpack   # to crops, and what was skipped for them
    self._started = False
    self.skipped: set[str] = set()

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> np.ndarray:
    with contextlib.nullcontext() if self._started else ignore_signals_in_children():  # they start here
      crops, problems = self._unpack(next(self._batches))
    self._started = True
    for problem in problems:
      if problem not in self.skipped:
        self.skipped.add(problem)
        log.warning("skipped, another image takes its place: %s (broken so far: %d)", problem, len(self.skipped))
    return crops

  def close(self) -> None:
    """Ends the threads and worker processes that read: no batch comes after it. At the exit of Python it is too late,
    they would be ended with tracebacks."""
    batches, self._batches = self._batches, iter(())
    if hasattr(batches, "close"):  # others end with the last reference
      batches.close()


def training_batches(mixture: Mixture, *, seed: int, batch_size: int, sizes: CropSizes, downscale_probability: float,
                     downscale: str, flip: bool, start: int = 0, process_index: int = 0, process_count: int = 1,
                     threads: int = 1, workers: int = 0) -> Batches:
  """Batches start, start + 1, ... without end, each (batch_size / process_count, crop, crop, 3) uint8, where the crop
  is crop_size_at(sizes, t) pixels in batch t.

  `batch_size` is the global one; process p of n reads block p of each global batch. `threads` decode in this
  process, or `workers` > 0 processes do. A photograph that is broken, or too small for the crops of its step, is
  replaced by another one of its source, drawn at random."""
  if downscale not in DOWNSCALE:
    raise ConfigError(f"downscale={downscale!r}; wanted one of {', '.join(DOWNSCALE)}")

  def read(place: int, drawn: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Crop number `place` of the run, and what was broken instead of it."""
    part, index = drawn
    photographs = mixture.parts[part]
    problems: list[str] = []
    crop_size = crop_size_at(sizes, place // batch_size)
    for attempt in range(MOST_REDRAWS):
      # One generator an attempt: it must not matter whether this process knew already that a photograph is broken.
      rng = np.random.default_rng((seed, place, attempt))
      if attempt:
        index = int(rng.integers(len(photographs)))
      try:
        photograph = photographs[index]
        if photograph.header.short_side >= crop_size:
          return random_crop(photograph, rng, crop_size, downscale_probability=downscale_probability,
                             downscale=downscale, flip=flip), problems
      except ImageError as error:
        problems.append(str(error))
    raise ImageError(f"{photographs.source.name}: no crop of {crop_size} pixels in {MOST_REDRAWS} images, broken or "
                     f"too small" + (f"; one of them: {problems[-1]}" if problems else ""))

  def stack(crops_and_problems) -> tuple[np.ndarray, list[str]]:
    crops, problems = zip(*crops_and_problems)
    return np.stack(crops), sum(problems, [])

  orders = [grain.MapDataset.range(len(part)).seed(seed + k).shuffle().repeat(MOST_CROPS // len(part) + 1)
            .map(lambda index, k=k: (k, index)) for k, part in enumerate(mixture.parts)]
  dataset = (grain.MapDataset.mix(orders, mixture.shares)
             .map_with_index(read)
             .batch(batch_size // process_count, batch_fn=stack))
  dataset = dataset[process_index::process_count][start:]
  read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, 2 * threads))
  batches = dataset.to_iter_dataset(read_options)
  if workers and not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # newer versions of grain ask flags of theirs
  if workers:  # arrays would travel in shared memory, and a batch that nobody took would stay there
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    return Batches(iter(batches.map(_to_bytes).mp_prefetch(options, worker_init_fn=_be_deaf)), _from_bytes)
  return Batches(iter(batches))


def _be_deaf(*_) -> None:
  """In a worker process: Ctrl-C is for the program that started it, however it was started."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)


def _to_bytes(batch: tuple[np.ndarray, list[str]]) -> tuple[bytes, tuple[int, ...], list[str]]:
  crops, problems = batch
  return crops.tobytes(), crops.shape, problems


def _from_bytes(batch: tuple[bytes, tuple[int, ...], list[str]]) -> tuple[np.ndarray, list[str]]:
  pixels, shape, problems = batch
  return np.frombuffer(pixels, np.uint8).reshape(shape), problems


def eval_images(sources: Sequence[Source], crop_size: int, limit: int) -> np.ndarray:
  """Center crops of up to `limit` (0: all) photographs, spread evenly over all sources: (n, crop, crop, 3) uint8.

  A broken photograph is named and left out, for the next one if there is one before the next that is wanted anyway."""
  parts = [usable(source, crop_size) for source in sources]
  places = [(part, index) for part in parts for index in range(len(part))]
  count = min(limit, len(places)) if limit else len(places)
  images = []
  for i in range(count):
    candidates = places[i * len(places) // count:(i + 1) * len(places) // count]
    for part, index in candidates:
      try:
        photograph = part[index]
        if photograph.header.short_side >= crop_size:
          images.append(center_crop(photograph.decode(), crop_size))
          break
      except ImageError as error:
        log.warning("skipped in the evaluation: %s", error)
  if not images:
    raise ImageError(f"{', '.join(source.name for source in sources)}: no image for evaluation can be decoded and has "
                     f"sides of at least {crop_size} pixels")
  return np.stack(images)
