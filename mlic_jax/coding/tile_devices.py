"""Tiles on all devices of a process: each device computes batches of its own, by the same functions.

No function runs on several devices, and no device awaits another one. The host dispatches a batch to each device and
fetches the results in order. Which tiles are in a batch does not depend on the devices, and so the file does not.
"""
import collections
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax

SETTINGS: Any = jax.config  # its attributes are unknown to type checkers

T = TypeVar("T")


def devices(count: int) -> list[jax.Device | None]:
  """Returns at most `count` devices of this process; None is where the arrays are, if there is one or one was set."""
  found = jax.local_devices()[:count]
  return [None] if len(found) < 2 or SETTINGS.jax_default_device is not None else [*found]


def ahead(dispatched: Iterable[T], count: int) -> Iterator[T]:
  """Yields the results of functions in order, after `count` of them were dispatched; 1 awaits each."""
  waiting = collections.deque[T]()
  for result in dispatched:
    waiting.append(result)
    if len(waiting) == count:
      yield waiting.popleft()
  yield from waiting


def in_turns(runs: Sequence[Generator[None, None, T]]) -> list[T]:
  """Runs generators, each up to its next `yield` in turn, and returns their results.

  A generator that yields whenever it has dispatched work lets its device compute while the others are served."""
  results, left = dict[int, T](), dict(enumerate(runs))
  while left:
    for number, run in list(left.items()):
      try:
        next(run)
      except StopIteration as end:
        results[number] = end.value
        del left[number]
  return [results[number] for number in range(len(runs))]


def finished(run: Generator[None, None, Any]) -> Any:
  """Runs a generator and returns its result."""
  return in_turns([run])[0]
