"""Checks before the first step: all processes share one workdir and start the same run."""

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import time
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlic_jax.atomic_io import write_whole
from mlic_jax.data.holdout import HeldOut
from mlic_jax.errors import ConfigError
from mlic_jax.folder_lock import FolderLock, read_lock
from mlic_jax.paths import PathError, as_path, check_utf8, is_remote, remove_folder
from mlic_jax.runtime.startup import PACKAGE, digest_of_code
from mlic_jax.training.checkpoints import config_to_dict, flatten

# Fields that may differ between processes: paths, and how data is read.
LOCAL_FIELDS = ("data_dir", "tfds_dir", "eval_dir", "init_from", "teacher", "data_threads", "data_workers",
                "cache_gigabytes", "profile_steps")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LOCK = "run.lock"
HELD_OUT = "held_out.txt"
ESCAPES = {"\\": "\\", "n": "\n", "t": "\t"}
LOCK_WAIT = 10.0       # seconds after which a shared file is visible on every host
STARTED = time.time()  # start time of this process, about


def checked_workdir(text: str | Path) -> Path:
  """Returns the path of --workdir. PathError if Orbax cannot write checkpoints there."""
  path = as_path(text)
  if is_remote(path) and not str(path).startswith("gs://"):
    raise PathError(f"--workdir={path}: Orbax cannot write there; wanted a local folder or gs://BUCKET/NAME")
  check_utf8(path)
  return path


def workdir_lock(workdir: Path) -> FolderLock:
  """Returns the lock of the run that trains in `workdir`."""
  return FolderLock(workdir, LOCK, "run", "--workdir")


def check_lock(workdir: Path, run: str) -> None:
  """Raises ConfigError unless this process finds the lock of `run`, which process 0 has taken, in `workdir`."""
  end = time.monotonic() + LOCK_WAIT
  while (read_lock(workdir / LOCK) or {}).get("run") != run:
    if time.monotonic() > end:
      raise ConfigError(f"--workdir={workdir} is another folder on this process than on process 0; wanted a folder "
                        "that all processes share")
    time.sleep(0.2)


def record(config, step: int, num_images: int, held_out: np.ndarray) -> dict[str, Any]:
  """Returns the settings that have to be the same in all processes of a run, for Processes.check_same."""
  fields = flatten(config_to_dict(config))
  code = digest_of_code()
  return {"the start step": step, "the number of training images": num_images,
          "the set of held-out images": "{} images (checksum {})".format(*checksum(held_out).split("-")),
          "the version of jax": importlib.metadata.version("jax"), "the code of mlic_jax": str(code)[:12],
          **{f"config.{name}": value for name, value in fields.items() if name not in LOCAL_FIELDS}}


def environment() -> dict[str, Any]:
  """Returns the versions, devices and processes of this run, for config.json."""
  return dict({name: importlib.metadata.version(name) for name in PACKAGES}, python=platform.python_version(),
              mlic_jax=project_version(), devices=jax.device_count(), device_kind=jax.devices()[0].device_kind,
              processes=jax.process_count())


def project_version() -> str:
  """Returns the commit of a git checkout, with "+" for changed files, or else the version of the package."""
  root = PACKAGE.parent
  if (root / ".git").exists():
    git = lambda *arguments: subprocess.run(("git", "-C", str(root), *arguments), capture_output=True, text=True)
    with contextlib.suppress(OSError):  # git is not installed
      commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", "mlic_jax")
      if commit.returncode == 0:
        return commit.stdout.strip() + "+" * bool(changes.stdout.strip())
  try:
    return importlib.metadata.version("mlic_jax")
  except importlib.metadata.PackageNotFoundError:
    return "unknown"


def checksum(held_out: np.ndarray) -> str:
  """Returns a checksum of the pixels of held-out images, (n, crop, crop, 3) uint8."""
  return f"{len(held_out)}-{zlib.crc32(held_out.tobytes()):08x}"


def read_held_out(workdir: Path) -> list[HeldOut]:
  """Returns the images that earlier starts of the run in `workdir` held out, from WORKDIR/held_out.txt.

  A line has a name, a tab and the digest of the content; older versions wrote the name only."""
  path = workdir / HELD_OUT
  found = []
  for line in os.fsdecode(path.read_bytes()).split("\n")[:-1] if path.exists() else ():
    name, tab, digest = line.rpartition("\t")
    if tab and re.fullmatch(r"(\d+-[0-9a-f]{32})?", digest):
      found.append(HeldOut(re.sub(r"\\(.)", lambda escaped: ESCAPES[escaped[1]], name), digest))
    else:
      found.append(HeldOut(line, ""))
  return found


def write_held_out(workdir: Path, images: Iterable[HeldOut]) -> None:
  """Writes WORKDIR/held_out.txt. Names are bytes as in the file system, with backslash, newline and tab escaped."""
  escaped = lambda name: name.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t")
  text = "".join(f"{escaped(name)}\t{digest}\n" for name, digest in dict.fromkeys(images))
  write_whole(workdir / HELD_OUT, os.fsencode(text))


def trained_on_held_out(recorded: Sequence[HeldOut], training: Collection[str]) -> str | None:
  """Returns a warning if `training` has names of images that earlier starts held out, None otherwise."""
  if reused := sorted({image.name for image in recorded} & set(training)):
    return (f"training now uses {len(reused)} of {len(recorded)} images that were held out, such as {reused[0]}: "
            "evaluations before and after this start are not comparable")
  return None


def remove_partial_files(workdir: Path) -> None:
  """Removes files and model directories that a killed process of this machine had not finished writing."""
  for path in () if is_remote(workdir) else workdir.glob(".*.partial"):
    process = re.fullmatch(r"\.(?:[0-9a-f]{16}\.)?(\d+)(?:-\d+)?\.partial", path.name)
    if process and path.stat().st_mtime < STARTED and not _is_another_process(int(process[1])):
      remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)


def _is_another_process(number: int) -> bool:
  if number == os.getpid():  # containers reuse PIDs
    return False
  try:
    os.kill(number, 0)
  except OSError as error:
    return isinstance(error, PermissionError)  # a process of another user
  return True
