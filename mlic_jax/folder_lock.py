"""Lock files that let one process at a time write to a folder.

The holder writes the lock file at regular intervals, which also works on network and cloud storage, where locks are
missing or unreliable. On the same machine the process of the holder is looked up. On other machines the file is
watched: if it no longer changes, the holder was killed, and the lock is taken over.
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

HEARTBEAT = 5.0  # seconds between two writes
TIMEOUT = 20.0   # seconds without a write after which a holder on another machine counts as killed
SETTLE = 0.2     # seconds between writing a lock and checking it, as two processes may write it at once


class FolderInUse(ConfigError):
  """Another process holds the lock; one line with its host, process and start time."""


class FolderLock:
  """Context manager that holds the lock of `folder`, which it creates. Entering raises FolderInUse.

  The attribute `run` is the unique name of the holder.

  Args:
    folder: local or remote.
    name: file name of the lock; locks of different names do not exclude each other.
    what: kind of the holder in the error message, such as "run".
    option: name of the argument with the folder in the error message.
  """

  def __init__(self, folder: Path, name: str, what: str, option: str):
    self.path, self.run, self._what, self._option = folder / name, uuid.uuid4().hex, what, option
    self._mine = dict(_this_process(), since=datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
                      run=self.run)
    self._done = threading.Event()
    self._heartbeat = threading.Thread(target=self._write_heartbeats, daemon=True, name="lock")

  def __enter__(self) -> "FolderLock":
    lock = read_lock(self.path)
    if lock is not None and _is_alive(lock, self.path):
      raise self._in_use(lock)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._write(0)
    time.sleep(SETTLE)
    self.check()
    self._heartbeat.start()
    return self

  def __exit__(self, *_) -> None:
    self._done.set()
    self._heartbeat.join()
    if self._holds():
      self.path.unlink(missing_ok=True)

  def check(self) -> None:
    """Raise FolderInUse if another process has taken the lock, as after a long suspension of this one."""
    lock = read_lock(self.path)
    if lock is not None and lock["run"] != self.run:
      raise self._in_use(lock)

  def _holds(self) -> bool:
    return (read_lock(self.path) or {}).get("run") == self.run

  def _write(self, beat: int) -> None:
    write_whole(self.path, json.dumps(dict(self._mine, beat=beat)) + "\n")

  def _write_heartbeats(self) -> None:
    beat = 0
    while not self._done.wait(HEARTBEAT):
      beat += 1
      try:
        if self._holds():
          self._write(beat)
      except Exception as error:  # the caller reports a failing storage, as it writes to the same folder
        log.debug("%s: %s", self.path, error)

  def _in_use(self, lock: dict[str, Any]) -> FolderInUse:
    return FolderInUse(f"{self.path.parent} is in use by another {self._what} (host {lock['host']}, process "
                       f"{lock['process']}, since {lock['since']}); wanted another {self._option}, or that "
                       f"{self._what} to end")


def read_lock(path: Path) -> dict[str, Any] | None:
  """Return the content of the lock at `path`; None without a lock."""
  try:
    lock = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return lock if isinstance(lock, dict) and "run" in lock else None


def _this_process() -> dict[str, Any]:
  """Return the identity of this process. `machine` differs by boot and container, `started` by reuse of a number."""
  return dict(host=socket.gethostname(), machine=_machine(), process=os.getpid(), started=_started(os.getpid()))


def _machine() -> str:
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # no Linux
    return f"{socket.gethostname()} {uuid.getnode()}"


def _started(process: int) -> str | None:
  """Return the start time of a process in ticks since boot; None if it is unknown, or if the process does not run."""
  try:
    state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return None
  return None if state == "Z" else fields[18]


def _is_alive(lock: dict[str, Any], path: Path) -> bool:
  if lock.get("machine") == _machine():
    if lock["started"] is not None:
      return _started(lock["process"]) == lock["started"]
    try:
      os.kill(lock["process"], 0)
    except OSError as error:
      return isinstance(error, PermissionError)  # the process of another user
    return True
  log.warning("%s: waiting up to %g s for a write of its process on host %s", path, TIMEOUT, lock["host"])
  for _ in range(round(TIMEOUT / HEARTBEAT)):
    time.sleep(HEARTBEAT)
    now = read_lock(path)
    if now is None:
      return False
    if now != lock:
      return True
  return False
