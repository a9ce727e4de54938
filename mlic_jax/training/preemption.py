"""How a run stops when it is told to: all of its processes after one and the same step.

A signal comes to one process, or to all of them a moment apart. Each hands what it has received to its next step, which
sums it with the metrics over all devices, so that every process reads the same sum of the same step. That takes no
exchange of its own, and no clock; jax's preemption service would hear of SIGTERM alone.
"""

import collections
import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the first one that any process received counts
NOTHING = np.zeros(len(SIGNALS), np.float32)


class Interrupted(Exception):
  """A signal of SIGNALS came; the state was saved, unless there was a `problem`. `status` is what a shell would say."""

  def __init__(self, signum: int, step: int, problem: str | None = None):
    saved = f"which is not saved: {problem}; the same command continues at an older one" if problem else (
        "the same command continues")
    super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}; {saved}")
    self.signum, self.status = signum, 128 + signum


def signal_of(stop: np.ndarray) -> int | None:
  """The signal in the flags (len(SIGNALS),) of one process or in their sum, None without one."""
  return next((int(number) for number, flag in zip(SIGNALS, stop) if flag > 0), None)


class Stop:
  """Whether the run has to stop, asked after every step and every batch of an evaluation."""

  def __init__(self, received: list[int], in_flight: int):
    """`received` grows with the signals of this process. The answer lags `in_flight` - 1 steps behind where there are
    several processes, so that nobody waits for a step that was just begun."""
    self._received, self._lag = received, in_flight - 1
    self._sums: collections.deque[jax.Array] = collections.deque()

  def flags(self) -> np.ndarray:
    """(len(SIGNALS),) float32: what this process has received, for its next step."""
    return np.array([number in self._received for number in SIGNALS], np.float32)

  def asked(self, sums: jax.Array, last: bool = False) -> int | None:
    """The signal to stop for after the step whose sum of all flags is in `sums`, (local devices, len(SIGNALS)).

    `last`: the signals of all steps so far count, since no later one will be asked."""
    if jax.process_count() == 1:
      return signal_of(self.flags())
    self._sums.append(sums)
    while len(self._sums) > (0 if last else self._lag):
      signum = signal_of(np.asarray(self._sums.popleft().addressable_shards[0].data).reshape(-1))
      if signum is not None:
        return signum
    return None


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
  """Collects the signals of SIGNALS in a list instead of dying of them; a second one acts as usual.

  SIGHUP stays ignored where it was, as under nohup."""
  received: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  usual = {number: signal.getsignal(number) for number in SIGNALS}
  if usual[signal.SIGHUP] == signal.SIG_IGN:
    del usual[signal.SIGHUP]

  def note(signum, _):
    received.append(signum)
    for number, handler in usual.items():
      signal.signal(number, handler)

  for number in usual:
    signal.signal(number, note)
  try:
    yield received
  finally:
    for number, handler in usual.items():
      signal.signal(number, handler)
