"""What has to be true before the first step: one workdir that all processes see, and the same run in each of them."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlic_jax.atomic_io import write_whole
from mlic_jax.errors import ConfigError
from mlic_jax.folder_lock import FolderLock, read_lock
from mlic_jax.paths import PathError, as_path, check_utf8, is_remote
from mlic_jax.runtime.startup import PACKAGE, digest_of_code
from mlic_jax.training.checkpoints import config_to_dict, flatten

# What may differ from process to process: where things lie, and how they are read.
LOCAL_FIELDS = ("data_dir", "tfds_dir", "eval_dir", "init_from", "teacher", "data_threads", "data_workers",
                "cache_gigabytes", "profile_steps")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LOCK = "run.lock"
LATER = 10.0  # seconds after which a file is seen from every host, or never


def checked_workdir(text: str | Path) -> Path:
  """The path of --workdir; PathError where Orbax cannot write checkpoints."""
  path = as_path(text)
  if is_remote(path) and not str(path).startswith("gs://"):
    raise PathError(f"--workdir={path}: wanted a local folder or gs://BUCKET/NAME, where Orbax can write")
  check_utf8(path)
  return path


def workdir_lock(workdir: Path) -> FolderLock:
  """The lock of the run that trains in `workdir`."""
  return FolderLock(workdir, LOCK, "run", "--workdir")


def find_lock(workdir: Path, run: str) -> None:
  """ConfigError unless the lock of `run`, which the first process has taken, is found in `workdir` here, too."""
  end = time.monotonic() + LATER
  while (read_lock(workdir / LOCK) or {}).get("run") != run:
    if time.monotonic() > end:
      raise ConfigError(f"--workdir={workdir} is not the folder of that name that process 0 sees; wanted a folder that "
                        "all processes share")
    time.sleep(0.2)


def record(config, step: int, num_photographs: int, held_out: np.ndarray) -> dict[str, Any]:
  """What has to be the same in all processes of a run, for Processes.check_alike."""
  fields = flatten(config_to_dict(config))
  pixels, code = zlib.crc32(held_out.tobytes()), digest_of_code()
  return {"the start step": step, "the number of photographs": num_photographs,
          "held out": f"{len(held_out)} pictures (checksum {pixels:08x})",
          "the version of jax": importlib.metadata.version("jax"), "the code of mlic_jax": str(code)[:12],
          **{f"config.{name}": value for name, value in fields.items() if name not in LOCAL_FIELDS}}


def environment() -> dict[str, Any]:
  """Versions, devices and processes of this run, for config.json."""
  return dict({name: importlib.metadata.version(name) for name in PACKAGES}, python=platform.python_version(),
              mlic_jax=project_version(), devices=jax.device_count(), device_kind=jax.devices()[0].device_kind,
              processes=jax.process_count())


def project_version() -> str:
  """The commit in a git checkout, with "+" when files differ from it; else the version of the installed package."""
  root = PACKAGE.parent
  if (root / ".git").exists():
    git = lambda *arguments: subprocess.run(("git", "-C", str(root), *arguments), capture_output=True, text=True)
    with contextlib.suppress(OSError):  # no git here
      commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", "mlic_jax")
      if commit.returncode == 0:
        return commit.stdout.strip() + "+" * bool(changes.stdout.strip())
  try:
    return importlib.metadata.version("mlic_jax")
  except importlib.metadata.PackageNotFoundError:
    return "unknown"


def keep_held_out(workdir: Path, held_out: list[str], training: list[str]) -> str | None:
  """Adds names of held-out pictures to WORKDIR/held_out.txt; a line when the run trains on one that was held out."""
  path = workdir / "held_out.txt"
  before = os.fsdecode(path.read_bytes()).split("\n")[:-1] if path.exists() else []
  write_whole(path, os.fsencode("".join(f"{name}\n" for name in dict.fromkeys((*before, *held_out)))))
  if seen := sorted(set(before) & set(training)):
    return (f"{len(seen)} of {len(before)} pictures that were held out are trained on from now on, such as {seen[0]}: "
            "evaluations before and after this start do not compare")
  return None
