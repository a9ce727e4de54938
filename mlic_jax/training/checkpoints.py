"""Checkpoints of a training run, with Orbax: everything that an exact resume needs.

    WORKDIR/config.json          the configuration of the run
    WORKDIR/checkpoints/STEP/    TrainState of one device, and the best evaluation loss so far

The position in the data is not among them: batch t is a function of the seed and t (data.py). What users load is
WORKDIR/model, a model directory (mlic_jax/coding/checkpoint_io.py).
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

CLOUD_PACKAGES = ("gcsfs", "aiohttp", "google")  # whose errors are none of the operating system
OF_TENSORSTORE = re.compile(r" \[(?:source locations='tensorstore/|http_response_code=|tensorstore_spec=)")
ENVIRONMENT = "environment"  # the entry of config.json that is no field


class DamagedCheckpoints(ConfigError):
  """A workdir with checkpoints of which none can be read; one line."""


class ConfigMismatch(ConfigError):
  """The checkpoints in a workdir belong to another configuration; one line that names the fields."""


def config_to_dict(config) -> dict[str, Any]:
  """A ConfigDict as JSON gives it back: tuples are lists."""
  return json.loads(json.dumps(config.to_dict()))


def flatten(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"model": {"N": 64}} -> {"model.N": 64}."""
  flat = {}
  for name, value in fields.items():
    flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
  return flat


def read_config(path: Path) -> dict[str, Any]:
  """The fields that write_config wrote. ConfigError in one line when it is damaged."""
  try:
    fields = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ConfigError(f"{path}: cannot be read ({error}); wanted the configuration of a run") from error
  if not isinstance(fields, dict):
    raise ConfigError(f"{path}: holds {type(fields).__name__}; wanted the configuration of a run")
  return {name: value for name, value in fields.items() if name != ENVIRONMENT}


def check_config(config, path: Path) -> None:
  """ConfigMismatch unless the configuration in the file `path` agrees with `config` in all fields that are not free.

  A field of the model that one of them lacks, as it is newer than the run, has its default there. model.scan_unroll,
  which older programs knew, is free as scan_unroll is."""
  defaults = flatten({"model": CodecConfig().to_dict()})
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
    raise ConfigMismatch(f"{path.parent} holds a run of another configuration; these fields differ: "
                         f"{', '.join(differ)}; wanted the same configuration or another --workdir")


def write_config(config, path: Path, environment: dict[str, Any]) -> None:
  """Writes the configuration as JSON, whole or not at all, and what the run runs on."""
  write_whole(path, json.dumps(dict(config_to_dict(config), **{ENVIRONMENT: environment}), indent=2) + "\n")


def storage_problem(error: Exception) -> str | None:
  """One line about a disk or a cloud storage that is full or failing; None when `error` is something else.

  TensorStore raises a ValueError with the message of the operating system, or of the storage, in it, and of its own in
  brackets behind."""
  text = " ".join(str(error).split())
  if not isinstance(error, OSError) and "OS error" not in text and not OF_TENSORSTORE.search(text) and (
      type(error).__module__.split(".")[0] not in CLOUD_PACKAGES):
    return None
  reason = re.search(r"OS error [^\]]*", text)
  return reason[0] if reason else OF_TENSORSTORE.split(text)[0]


def latest_step(workdir: Path) -> int | None:
  """Returns the step of the newest complete checkpoint in `workdir`, None without one."""
  directory = workdir / "checkpoints"
  return max(ocp.utils.checkpoint_steps(directory), default=None) if directory.exists() else None


class Evaluated(NamedTuple):
  """The evaluations of a run so far."""
  best_loss: float | None = None  # lowest loss, that of the exported model
  step: int = 0                   # step of the last evaluation
  held_out: str = ""              # checksum of the images of best_loss; "" in checkpoints of older programs


class Restored(NamedTuple):
  """The content of a checkpoint."""
  state: TrainState  # NumPy arrays
  evaluated: Evaluated


class Checkpoints:
  """The checkpoints of a workdir: the first process saves them asynchronously, and the newest `keep` of them stay.

  The state is the same in all processes; they read what the first one wrote, and no process waits for another here.
  A full disk does not end a training: `save` and `close` return the problem in a line, and the next save tries again.
  As a context manager it is closed at the end, also when a training raises."""

  def __init__(self, workdir: str | os.PathLike, keep: int):
    workdir = as_path(workdir)
    self.workdir = workdir if is_remote(workdir) else workdir.resolve()
    self.directory = self.workdir / "checkpoints"
    self._note = self.workdir / "evaluated.json"
    self._writes = jax.process_index() == 0
    self._keep = keep
    self._problem: str | None = None  # of the last save
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
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(active_processes={me}, primary_host=me,
                                               barrier_sync_key_prefix=f"mlic_jax_checkpoints_{me}")
    options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=False, enable_async_checkpointing=True,
                                           multiprocessing_options=alone)
    return ocp.CheckpointManager(self.directory, options=options)

  @property
  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint, None without one: a save that is under way does not count."""
    return latest_step(self.workdir)

  def save(self, state: TrainState, evaluated: Evaluated) -> str | None:
    """Starts saving `state`, NumPy arrays that nobody writes to (see parallel.unreplicate), under state.step.

    Returns a line if the disk failed in this save or in the one before it, None otherwise."""
    if not self._writes:
      return None
    before, step = self._settle(), int(state.step)
    if step != self.latest_step:
      args = ocp.args.Composite(state=ocp.args.StandardSave(_fields(state)),
                                best=ocp.args.JsonSave(_as_json(evaluated)))
      self._problem = self._attempt(lambda: self._manager.save(step, args=args, force=True))
    return self._problem or before

  def restore(self, like: TrainState) -> Restored | None:
    """Returns the newest complete checkpoint, None if there is no checkpoint at all; `like` gives the structure.

    A warning names newer ones that cannot be read. DamagedCheckpoints if none can be read."""
    problems = {}
    for step in sorted(ocp.utils.checkpoint_steps(self.directory) if self.directory.exists() else (), reverse=True):
      try:
        restored = self._read(step, like)
      except Exception as error:  # Orbax and TensorStore raise whatever the damage leads them to
        problems[step] = " ".join(str(error).split())[:200] or type(error).__name__
        log.warning("%s is damaged, an older one is looked for (%s)", self.directory / str(step), problems[step])
        continue
      return restored
    if problems:
      raise DamagedCheckpoints(f"{self.directory}: none of the checkpoints {', '.join(map(str, sorted(problems)))} can "
                               f"be read ({problems[max(problems)]}); wanted a whole one, or another --workdir")
    return None

  def prepare_to_save_after(self, step: int) -> None:
    """Makes place for saves after `step`: removes unfinished checkpoints of a process that was killed while it saved,
    and moves newer ones, which are damaged, to WORKDIR/damaged. The run must hold the lock of the workdir."""
    if not self._writes:
      return
    self._remove_unfinished()
    for newer in ocp.utils.checkpoint_steps(self.directory):
      if newer > step:
        aside = self.workdir / "damaged" / str(newer)
        remove_folder(aside)
        aside.parent.mkdir(parents=True, exist_ok=True)
        (self.directory / str(newer)).rename(aside)
    self._manager.reload()

  def _read(self, step: int, like: TrainState) -> Restored:
    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), _fields(like))
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target), best=ocp.args.JsonRestore())
    restored = self._manager.restore(step, args=args)
    best = restored.best
    if self._note.exists() and (note := json.loads(self._note.read_text()))["step"] == step:
      best = note
    # Older checkpoints do not name their last evaluation; they were made after that of their step.
    evaluated = Evaluated(best["loss"], best.get("evaluated", step), best.get("held_out", ""))
    return Restored(like.replace(**restored.state), evaluated)

  def note_evaluation(self, step: int, evaluated: Evaluated) -> None:
    """Adds an evaluation to the checkpoint of `step` that was made after the checkpoint, as a signal had come first."""
    if self._writes:
      write_whole(self._note, json.dumps(dict(_as_json(evaluated), step=step)) + "\n")

  def close(self) -> str | None:
    """Waits for the last save and frees the threads of Orbax, in every process; a second call does nothing.

    Returns a line if the last save failed."""
    if "_manager" not in vars(self):
      return None
    problem = self._settle() or self._problem
    problem = self._attempt(self._manager.close) or problem
    del self._manager
    return problem

  def _settle(self) -> str | None:
    return self._attempt(self._manager.wait_until_finished)

  def _attempt(self, work: Callable[[], object]) -> str | None:
    try:
      work()
    except Exception as error:
      problem = storage_problem(error)
      if problem is None:
        raise
      self._remove_unfinished()  # what the failed attempt left takes up the disk
      return problem
    return None

  def _remove_unfinished(self) -> None:
    for name in ocp.utils.tmp_checkpoints(self.directory):
      remove_folder(self.directory / name)


def _as_json(evaluated: Evaluated) -> dict[str, Any]:
  return {"loss": evaluated.best_loss, "evaluated": evaluated.step, "held_out": evaluated.held_out}


def _fields(state: TrainState) -> dict[str, Any]:
  return {name: value for name, value in vars(state).items() if value is not None}
