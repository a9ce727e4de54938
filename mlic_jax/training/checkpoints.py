"""Checkpoints of a training run, written by Orbax: everything that an exact resume needs.

    WORKDIR/config.json          the config of the run
    WORKDIR/checkpoints/STEP/    TrainState of one device, and the best evaluation loss so far

The position in the data is not stored: batch t is a function of the seed and t (data/loader.py). Users load the model
directory WORKDIR/model (coding/checkpoint_io.py).
"""

import functools
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from mlic_jax.atomic_io import write_whole
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.paths import as_path, is_remote, remove_folder
from mlic_jax.training.config_schema import FIELDS
from mlic_jax.training.step import TrainState

log = logging.getLogger(__name__)

CLOUD_PACKAGES = ("gcsfs", "aiohttp", "google")  # packages whose storage errors are not OSErrors
TENSORSTORE_SUFFIX = re.compile(r" \[(?:source locations='tensorstore/|http_response_code=|tensorstore_spec=)")
ENVIRONMENT = "environment"  # the entry of config.json that is not a field


class DamagedCheckpoints(ConfigError):
  """No checkpoint in the workdir can be read; the message is one line."""


class ConfigMismatch(ConfigError):
  """The checkpoints in the workdir belong to another config; the message is one line that names the fields."""


def config_to_dict(config) -> dict[str, Any]:
  """Converts a ConfigDict to a dict of JSON types: tuples become lists."""
  return json.loads(json.dumps(config.to_dict()))


def flatten(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens nested fields: {"model": {"N": 64}} becomes {"model.N": 64}."""
  flat = {}
  for name, value in fields.items():
    flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
  return flat


def read_config(path: Path) -> dict[str, Any]:
  """Reads the fields that write_config wrote. ConfigError in one line if the file is damaged."""
  try:
    fields = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ConfigError(f"{path}: cannot be read ({error}); wanted the config of a run") from error
  if not isinstance(fields, dict):
    raise ConfigError(f"{path}: holds {type(fields).__name__}; wanted the config of a run")
  return {name: value for name, value in fields.items() if name != ENVIRONMENT}


def check_config(config, path: Path) -> None:
  """Raises ConfigMismatch unless the config in the file `path` agrees with `config` in all fields that are not free.

  A model field that is newer than the run has its default there. model.scan_unroll of older versions is free, like
  scan_unroll."""
  defaults = flatten({"model": CodecConfig().to_dict() | {"distribution": CodecConfig.distribution}})
  then, now = defaults | flatten(read_config(path)), defaults | flatten(config_to_dict(config))
  for fields in then, now:
    fields.pop("model.scan_unroll", None)
  missing = "absent"
  for name, field in FIELDS.items():
    if field.warning and then.get(name, now.get(name)) != now.get(name):
      log.warning("%s: %s was %s and is %s, %s", path.parent, name, then[name], now.get(name, missing), field.warning)
  differ = [f"{name} ({then.get(name, missing)} -> {now.get(name, missing)})"
            for name in sorted(then.keys() | now.keys())
            if not (name in FIELDS and FIELDS[name].is_free) and then.get(name, missing) != now.get(name, missing)]
  if differ:
    raise ConfigMismatch(f"{path.parent} holds a run with another config; these fields differ: "
                         f"{', '.join(differ)}; wanted the same config or another --workdir")


def write_config(config, path: Path, environment: dict[str, Any]) -> None:
  """Writes config and environment of a run as JSON, atomically."""
  write_whole(path, json.dumps(dict(config_to_dict(config), **{ENVIRONMENT: environment}), indent=2) + "\n")


def storage_problem(error: Exception) -> str | None:
  """Returns one line about a full or failing disk or cloud storage; None if `error` is something else.

  TensorStore raises a ValueError with the message of the operating system or the storage, and appends a text of its own
  in brackets."""
  text = " ".join(str(error).split())
  if not isinstance(error, OSError) and "OS error" not in text and not TENSORSTORE_SUFFIX.search(text) and (
      type(error).__module__.split(".")[0] not in CLOUD_PACKAGES):
    return None
  reason = re.search(r"OS error [^\]]*", text)
  return reason[0] if reason else TENSORSTORE_SUFFIX.split(text)[0]


def latest_step(workdir: Path) -> int | None:
  """Returns the step of the newest complete checkpoint in `workdir`, None without one."""
  directory = workdir / "checkpoints"
  return max(ocp.utils.checkpoint_steps(directory), default=None) if directory.exists() else None


class Evaluated(NamedTuple):
  """The evaluations of a run so far."""
  best_loss: float | None = None  # the lowest loss, which is that of the exported model
  step: int = 0                   # the step of the last evaluation
  held_out: str = ""              # checksum of the images for best_loss; "" in checkpoints of older versions


class Restored(NamedTuple):
  """The content of a checkpoint."""
  state: TrainState  # NumPy arrays
  evaluated: Evaluated


class Checkpoints:
  """The checkpoints of a workdir. Process 0 saves them asynchronously; the newest `keep` of them remain.

  All processes have the same state and restore the checkpoints of process 0; none waits for another here. A full disk
  does not stop a training: `save` and `close` return the problem as one line, and the next save tries again. The class
  is a context manager that closes itself, also after an exception."""

  def __init__(self, workdir: str | os.PathLike, keep: int):
    workdir = as_path(workdir)
    self.workdir = workdir if is_remote(workdir) else workdir.resolve()
    self.directory = self.workdir / "checkpoints"
    self._note = self.workdir / "evaluated.json"
    self._writes = jax.process_index() == 0
    self._keep = keep
    self._problem: str | None = None  # the problem of the last save
    if self._writes:
      self.directory.mkdir(parents=True, exist_ok=True)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, trace) -> None:
    problem = self.close()
    if problem and error is not None:  # without an error the run has reported it
      log.warning("%s: %s", self.directory, problem)

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    index = jax.process_index()
    this_process = ocp.options.MultiprocessingOptions(active_processes={index}, primary_host=index,
                                                      barrier_sync_key_prefix=f"mlic_jax_checkpoints_{index}")
    options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=False, enable_async_checkpointing=True,
                                           multiprocessing_options=this_process)
    return ocp.CheckpointManager(self.directory, options=options)

  @property
  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint, None without one; a save in progress does not count."""
    return latest_step(self.workdir)

  def save(self, state: TrainState, evaluated: Evaluated) -> str | None:
    """Starts saving `state` under state.step. Its arrays are NumPy arrays that nobody changes (parallel.unreplicate).

    Returns one line if the disk failed in this save or the previous one, None otherwise."""
    if not self._writes:
      return None
    before, step = self._wait(), int(state.step)
    if step != self.latest_step:
      args = ocp.args.Composite(state=ocp.args.StandardSave(_fields(state)),
                                best=ocp.args.JsonSave(_as_json(evaluated)))
      self._problem = self._attempt(lambda: self._manager.save(step, args=args, force=True))
    return self._problem or before

  def restore(self, like: TrainState) -> Restored | None:
    """Restores the newest readable checkpoint in the structure of `like`; None if there is no checkpoint.

    A warning names newer checkpoints that cannot be read. DamagedCheckpoints if none can be read."""
    problems = {}
    for step in sorted(ocp.utils.checkpoint_steps(self.directory) if self.directory.exists() else (), reverse=True):
      try:
        restored = self._read(step, like)
      except Exception as error:  # Orbax and TensorStore raise many types for damaged files
        problems[step] = " ".join(str(error).split())[:200] or type(error).__name__
        log.warning("%s is damaged (%s); trying the one before", self.directory / str(step), problems[step])
        continue
      return restored
    if problems:
      raise DamagedCheckpoints(f"{self.directory}: none of the checkpoints {', '.join(map(str, sorted(problems)))} can "
                               f"be read ({problems[max(problems)]}); wanted a complete one, or another --workdir")
    return None

  def prepare_to_save_after(self, step: int) -> None:
    """Prepares the folder for saves after `step`; the run has to hold the lock of the workdir.

    Removes unfinished checkpoints of killed processes, and moves newer checkpoints, which are damaged, to
    WORKDIR/damaged."""
    if not self._writes:
      return
    self._remove_unfinished()
    for newer in ocp.utils.checkpoint_steps(self.directory):
      if newer > step:
        target = self.workdir / "damaged" / str(newer)
        remove_folder(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.directory / str(newer)).rename(target)
    self._manager.reload()

  def _read(self, step: int, like: TrainState) -> Restored:
    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), _fields(like))
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target), best=ocp.args.JsonRestore())
    with np.printoptions(threshold=0, edgeitems=1):  # asyncio makes a text of the result, as in checkpoint_io.py
      restored = self._manager.restore(step, args=args)
    best = restored.best
    if self._note.exists() and (note := json.loads(self._note.read_text()))["step"] == step:
      best = note
    # Older checkpoints do not record the step of their last evaluation; it was that of the checkpoint.
    evaluated = Evaluated(best["loss"], best.get("evaluated", step), best.get("held_out", ""))
    return Restored(like.replace(**restored.state), evaluated)

  def note_evaluation(self, step: int, evaluated: Evaluated) -> None:
    """Adds an evaluation to the saved checkpoint of `step`, for a run that a signal stopped before the evaluation."""
    if self._writes:
      write_whole(self._note, json.dumps(dict(_as_json(evaluated), step=step)) + "\n")

  def close(self) -> str | None:
    """Waits for the last save and frees the threads of Orbax, in every process; a second call does nothing.

    Returns one line if the last save failed, None otherwise."""
    if "_manager" not in vars(self):
      return None
    problem = self._wait() or self._problem
    problem = self._attempt(self._manager.close) or problem
    del self._manager
    return problem

  def _wait(self) -> str | None:
    return self._attempt(self._manager.wait_until_finished)

  def _attempt(self, work: Callable[[], object]) -> str | None:
    try:
      work()
    except Exception as error:
      problem = storage_problem(error)
      if problem is None:
        raise
      self._remove_unfinished()  # frees the disk space of the failed attempt
      return problem
    return None

  def _remove_unfinished(self) -> None:
    for name in ocp.utils.tmp_checkpoints(self.directory):
      remove_folder(self.directory / name)


def _as_json(evaluated: Evaluated) -> dict[str, Any]:
  return {"loss": evaluated.best_loss, "evaluated": evaluated.step, "held_out": evaluated.held_out}


def _fields(state: TrainState) -> dict[str, Any]:
  return {name: value for name, value in vars(state).items() if value is not None}
