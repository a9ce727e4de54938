"""The processes of one run: how they connect, agree on their start, and notice that one of them is lost.

They exchange messages through the key-value store of JAX's coordination service, as Orbax does, because messages are
needed before the first computation and while a computation hangs. jax.experimental.multihost_utils uses the devices,
and its assert_equal raises only in the processes that differ, while the others wait forever.
"""

import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the store has no public name; test_multihost.py tests the calls used here

from mlic_jax.errors import ConfigError, exit_status, for_the_user

log = logging.getLogger(__name__)

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
STATUS_LOST = 1        # exit status of a process that lost another one
TIMEOUT_MAX = 90       # seconds of silence; after 100 seconds JAX ends a process with a message of its own
_FOREVER = 2**31 - 1   # milliseconds; the heartbeat thread ends the wait for lost processes
_rounds = itertools.count()


class StartMismatch(ConfigError):
  """The processes start with different settings; the message names both, in one line, the same in every process."""


class OtherProcessFailed(ConfigError):
  """Another process cannot start; the message is one line with its reason."""


def connect(run_is_distributed: bool) -> None:
  """Connects the processes of a pod or a cluster; call it before any other use of JAX.

  VARIABLES give address, number and index if they are set; otherwise JAX detects TPU pods, SLURM and others. On CPU,
  JAX reduces over processes with Gloo. ConfigError if the processes cannot connect."""
  if not run_is_distributed or jax.distributed.is_initialized():
    return
  address, number, index = (os.environ.get(name) for name in VARIABLES)
  try:
    if number is None and index is None:
      jax.distributed.initialize()
    elif address and number and index and number.isdecimal() and index.isdecimal():
      jax.distributed.initialize(address, int(number), int(index))
    else:
      given = ", ".join(f"{name}={os.environ.get(name, '')}" for name in VARIABLES)
      raise ConfigError(f"distributed=True with {given}; wanted HOST:PORT of process 0, the number of processes and "
                        "the index of this one")
  except ConfigError:
    raise
  except (ValueError, RuntimeError) as error:
    raise ConfigError(f"distributed=True, but the processes did not connect ({' '.join(str(error).split())}); wanted a "
                      f"TPU pod, SLURM, or {', '.join(VARIABLES)}") from error
  if threading.current_thread() is threading.main_thread():  # JAX's preemption service has replaced the handler
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


class Processes:
  """The processes of a run, as a context manager that ends this process if another one is lost.

  A process is lost if it is silent for `timeout` seconds, or if it ends with an error of its own. The others then exit
  with one line."""

  def __init__(self, timeout: float):
    self.index, self.count = distributed.global_state.process_id, distributed.global_state.num_processes
    self.timeout = timeout
    self.host = socket.gethostname()
    self._client: Any = distributed.global_state.client  # None for a single process, which exchanges nothing
    self._beats = f"mlic_jax/{next(_rounds)}/beats/"
    self._ended = ""  # the error that ended this process
    self._independent = threading.Event()  # set after the last exchange
    self._watch = threading.Thread(target=self._watch_others, daemon=True, name="heartbeat")

  def __enter__(self) -> "Processes":
    if self.count > 1:
      self._watch.start()
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self.count == 1 or self._independent.is_set():
      return
    if error is None:
      self.leave()
      return
    if isinstance(error, jax.errors.JaxRuntimeError):  # another process may be lost in the middle of a reduction
      self._watch.join(self.timeout + 4 * self._pause)
    self._fail(error)

  def exchange(self, topic: str, value: Any) -> list[Any]:
    """Returns the values of all processes by index, as JSON types; every process has to call it."""
    if self.count == 1:
      return [value]
    key = f"mlic_jax/{next(_rounds)}/{topic}/"
    self._client.key_value_set(f"{key}{self.index}", json.dumps(value))
    return [json.loads(self._client.blocking_key_value_get(f"{key}{i}", _FOREVER)) for i in range(self.count)]

  def leave(self, value: Any = None) -> list[Any]:
    """Makes the last exchange; afterwards a process may end at any time without ending the others."""
    values = self.exchange("leave", value)
    self._independent.set()
    return values

  def run_in_all(self, work: Callable[[], Any]) -> Any:
    """Returns the result of `work()` in this process. If it raises in one process, the others raise OtherProcessFailed.
    """
    result, error = None, None
    try:
      result = work()
    except Exception as raised:
      error = raised
    problems = self.exchange("run_in_all", error and (for_the_user(error) or _one_line(error)))
    if not any(problems):
      return result
    self._independent.set()
    if error is not None:
      raise error
    index = next(i for i, problem in enumerate(problems) if problem)
    raise OtherProcessFailed(f"process {index} of {self.count} cannot start: {problems[index]}")

  def check_same(self, record: dict[str, Any]) -> None:
    """Raises StartMismatch in every process unless all of them pass the same record."""
    sides = self.exchange("record", (self.host, record))
    first = sides[0][1]
    for i, (host, other) in enumerate(sides):
      differ = [f"{name} is {first.get(name)} on process 0 ({sides[0][0]}) and "
                f"{other.get(name)} on process {i} ({host})"
                for name in first | other if first.get(name) != other.get(name)]
      if differ:
        self._independent.set()
        raise StartMismatch(f"the processes start differently: {'; '.join(differ)}; wanted the same on all of them")

  @property
  def _pause(self) -> float:
    return min(self.timeout / 4, 5.0)

  def _watch_others(self) -> None:
    silent, heard = [0.0] * self.count, [""] * self.count
    for beat in itertools.count():
      if self._independent.wait(self._pause):
        return
      try:
        self._send(f"{self.host} {self._ended or beat}")
        beats = {int(key.rsplit("/", 1)[1]): text for key, text in self._client.key_value_dir_get(self._beats)}
      except jax.errors.JaxRuntimeError as error:  # process 0 holds the store
        log.debug("heartbeat: %s", error)
        beats = {}
      for i, before in enumerate(heard):
        # Pauses are counted, not measured: if this process was suspended, the others may have been, too.
        text = beats.get(i, before)
        silent[i] = 0.0 if text != before or not beats and i else silent[i] + self._pause
        heard[i] = text
        host, _, ended = text.partition(" ended: ")
        if ended and i != self.index:
          self._stop(f"process {i} ({host}) ended: {ended}")
        if silent[i] >= self.timeout and i != self.index:
          host = f" ({text.split()[0]})" if text else ""
          self._stop(f"process {i}{host} has been silent for {self.timeout:g} s")

  def _fail(self, error: BaseException) -> NoReturn:
    """Reports the error to the others and exits without waiting for them; JAX would wait for minutes."""
    line = for_the_user(error)
    self._ended = f"ended: {line or _one_line(error)}"
    try:
      self._send(f"{self.host} {self._ended}")
    except jax.errors.JaxRuntimeError as gone:
      log.debug("heartbeat: %s", gone)
    if line is None:
      traceback.print_exception(error)
    else:
      print("train.py:", " ".join(line.split()), file=sys.stderr)
    # Process 0 holds the store, so it waits until the others have read the message.
    self._independent.wait(0 if self.index else 3 * self._pause)
    _exit(exit_status(error) if line else 1)

  def _send(self, beat: str) -> None:
    self._client.key_value_set(f"{self._beats}{self.index}", beat, allow_overwrite=True)

  def _stop(self, problem: str) -> None:
    if self._independent.is_set() or self._ended:  # this process already ends
      return
    print(f"train.py: {problem}; the same command continues at the last checkpoint", file=sys.stderr)
    _exit(STATUS_LOST)


def _one_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _exit(status: int) -> NoReturn:
  """Exits from any thread, without JAX's shutdown, which would wait for lost processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
