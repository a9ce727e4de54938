"""Stopping on a signal: all processes of a run stop after the same step.

A signal reaches one process, or all of them a moment apart. Each process passes the signal that it received to its next
step, which sums the signals with the metrics over all devices, so that every process reads the same sum of the same
step. This needs neither an extra exchange nor a clock; JAX's preemption service only notices SIGTERM.
"""

import collections
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the first one that any process received counts
NOTHING = np.zeros(len(SIGNALS), np.float32)


class Interrupted(Exception):
  """A signal of SIGNALS stopped the run; the state was saved unless there was a `problem`. `status` is a shell's."""

  def __init__(self, signum: int, step: int, problem: str | None = None):
    saved = f"which is not saved: {problem}; the same command continues at an older one" if problem else (
        "the same command continues")
    super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}; {saved}")
    self.signum, self.status = signum, 128 + signum


def signal_of(stop: np.ndarray) -> int | None:
  """Returns the signal in the flags (len(SIGNALS),) of one process, or in their sum; None if there is none."""
  return next((int(number) for number, flag in zip(SIGNALS, stop) if flag > 0), None)


class Stop:
  """Tells after every step and every batch of an evaluation whether the run has to stop."""

  def __init__(self, received: list[int], in_flight: int):
    """`received` grows with the signals of this process. With several processes the answer lags `in_flight` - 1 steps
    behind, so that no process waits for a step that has just begun."""
    self._received, self._lag = received, in_flight - 1
    self._sums: collections.deque[jax.Array] = collections.deque()

  def flags(self) -> np.ndarray:
    """Returns (len(SIGNALS),) float32 for the next step: 1 for the first signal that this process received."""
    return np.array([[number] == self._received[:1] for number in SIGNALS], np.float32)

  def asked(self, sums: jax.Array, last: bool = False) -> int | None:
    """Returns the signal to stop for after a step; `sums` (local devices, len(SIGNALS)) is the step's sum of all flags.

    With `last` the signals of all steps so far count, since there is no later step to ask after."""
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
  """Collects the signals of SIGNALS in a list; none of them ends the process within this context.

  The first one asks the run to save its state and stop. Launchers, schedulers and impatient users repeat signals, so
  further ones change nothing: a line on stderr says that the run is stopping, and that SIGKILL ends it at once. SIGHUP
  stays ignored if it was, as under nohup."""
  received: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  before = {number: signal.getsignal(number) for number in SIGNALS}
  if before[signal.SIGHUP] == signal.SIG_IGN:
    del before[signal.SIGHUP]

  def collect(signum, _):
    received.append(signum)
    if len(received) == 2 and sys.__stderr__ is not None:
      line = (f"train.py: stopping after {signal.Signals(received[0]).name}, the state is saved first; "
              f"kill -9 {os.getpid()} ends the run without that\n")
      with contextlib.suppress(OSError):
        os.write(2, line.encode())  # a handler may run in the middle of a print, which is not reentrant

  for number in before:
    signal.signal(number, collect)
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
