"""Stopping on a signal: all processes of a run stop after the same step.

A signal may reach one process, or all of them at slightly different times. Each process passes its signal to its next
step, which sums the signals of all processes with the metrics, so every process reads the same sum of the same step.
This needs no extra message and no clock. JAX's preemption service handles SIGTERM only.
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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # by falling priority if processes receive different ones
NO_SIGNALS = np.zeros(len(SIGNALS), np.float32)


class Interrupted(Exception):
  """A signal of SIGNALS stopped the run; the state was saved unless there was a `problem`.

  `status` is the exit status of a shell, 128 + signum."""

  def __init__(self, signum: int, step: int, problem: str | None = None):
    saved = f"which is not saved: {problem}; the same command continues at an older step" if problem else (
        "the same command continues")
    super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}; {saved}")
    self.signum, self.status = signum, 128 + signum


def signal_of(stop: np.ndarray) -> int | None:
  """Returns the signal in the flags (len(SIGNALS),) of one process, or in their sum; None if there is none."""
  return next((int(number) for number, flag in zip(SIGNALS, stop) if flag > 0), None)


class Stop:
  """Decides after every step, and every batch of an evaluation, whether the run has to stop."""

  def __init__(self, received: list[int], in_flight: int):
    """Reads `received`, the list of signals of this process, which grows.

    With several processes the decision lags `in_flight` - 1 steps, so that no process waits for a step that has just
    been dispatched."""
    self._received, self._lag = received, in_flight - 1
    self._sums: collections.deque[jax.Array] = collections.deque()

  def flags(self) -> np.ndarray:
    """Returns (len(SIGNALS),) float32 for the next step: 1 for the first signal that this process received."""
    return np.array([[number] == self._received[:1] for number in SIGNALS], np.float32)

  def asked(self, sums: jax.Array, last: bool = False) -> int | None:
    """Returns the signal to stop for, or None; `sums` (local devices, len(SIGNALS)) is the sum of all flags of a step.

    With `last` the sums of all steps so far are read, because there is no later step."""
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

  After the first one the run saves its state and stops. Launchers, schedulers and users repeat signals, so further ones
  have no effect: one line on stderr reports that the run is stopping and that SIGKILL ends it immediately. SIGHUP stays
  ignored if it was ignored before, as under nohup."""
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
      line = (f"train.py: saving the state after {signal.Signals(received[0]).name}, then stopping; "
              f"kill -9 {os.getpid()} ends the run without saving\n")
      with contextlib.suppress(OSError):
        os.write(2, line.encode())  # print is not reentrant, and a handler may interrupt a print

  for number in before:
    signal.signal(number, collect)
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
