"""One process writes to a folder at a time: a file in the folder says which.

The lock is a small file that its holder writes again and again, so that it works on network and cloud storage, which
have no locks, or none that can be trusted. On the machine that wrote it the process is looked for; from elsewhere the
file is watched. A lock that nobody writes any more was left by a process that was killed, and is taken over.
"""

import datetime
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from mlic_jax.atomic_io import write_whole
from mlic_jax.errors import ConfigError

log = logging.getLogger(__name__)

BEAT = 5.0      # seconds between two writes
SILENCE = 20.0  # after which a holder on another machine counts as killed
SETTLE = 0.2    # between writing a lock and believing it: two may have found the folder free at once


class FolderInUse(ConfigError):
  """Another process writes to the folder; one line that names its host and process, and since when."""


class FolderLock:
  """A context that holds the lock of `folder`, which it creates; entering raises FolderInUse. `run` names the holder.

  Args:
    folder: local or remote.
    name: of the file; locks of different names do not exclude each other.
    what: holds it, for the error, such as "run".
    option: the argument that names the folder, for the error.
  """

  def __init__(self, folder: Path, name: str, what: str, option: str):
    self.path, self.run, self._what, self._option = folder / name, uuid.uuid4().hex, what, option
    self._mine = dict(_this_process(), since=datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
                      run=self.run)
    self._done = threading.Event()
    self._beating = threading.Thread(target=self._beat, daemon=True, name="lock")

  def __enter__(self) -> "FolderLock":
    there = read_lock(self.path)
    if there is not None and _is_alive(there, self.path):
      raise self._in_use(there)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._write(0)
    time.sleep(SETTLE)
    self.check()
    self._beating.start()
    return self

  def __exit__(self, *_) -> None:
    self._done.set()
    self._beating.join()
    if self._holds():
      self.path.unlink(missing_ok=True)

  def check(self) -> None:
    """FolderInUse when another process has taken the folder, as after this one was suspended for long."""
    there = read_lock(self.path)
    if there is not None and there["run"] != self.run:
      raise self._in_use(there)

  def _holds(self) -> bool:
    return (read_lock(self.path) or {}).get("run") == self.run

  def _write(self, beat: int) -> None:
    write_whole(self.path, json.dumps(dict(self._mine, beat=beat)) + "\n")

  def _beat(self) -> None:
    beat = 0
    while not self._done.wait(BEAT):
      beat += 1
      try:
        if self._holds():
          self._write(beat)
      except Exception as error:  # a storage that fails is said by what has more to write
        log.debug("%s: %s", self.path, error)

  def _in_use(self, there: dict[str, Any]) -> FolderInUse:
    return FolderInUse(f"{self.path.parent} is in use by another {self._what} (host {there['host']}, process "
                       f"{there['process']}, since {there['since']}); wanted another {self._option}, or that "
                       f"{self._what} to end")


def read_lock(path: Path) -> dict[str, Any] | None:
  """What the lock at `path` says; None when there is none."""
  try:
    there = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return there if isinstance(there, dict) and "run" in there else None


def _this_process() -> dict[str, Any]:
  """Who a process is: `machine` tells boots and containers apart, `started` processes that got the same number."""
  return dict(host=socket.gethostname(), machine=_machine(), process=os.getpid(), started=_started(os.getpid()))


def _machine() -> str:
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # no Linux
    return f"{socket.gethostname()} {uuid.getnode()}"


def _started(process: int) -> str | None:
  """When a process was started, in ticks since boot; None where that cannot be told, or when it does not run."""
  try:
    state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return None
  return None if state == "Z" else fields[18]


def _is_alive(there: dict[str, Any], path: Path) -> bool:
  if there.get("machine") == _machine():
    if there["started"] is not None:
      return _started(there["process"]) == there["started"]
    try:
      os.kill(there["process"], 0)
    except OSError as error:
      return isinstance(error, PermissionError)  # then it is another user's
    return True
  log.warning("%s: looking for %g s whether its process on host %s is alive", path, SILENCE, there["host"])
  for _ in range(round(SILENCE / BEAT)):
    time.sleep(BEAT)
    now = read_lock(path)
    if now is None:
      return False
    if now != there:
      return True
  return False
