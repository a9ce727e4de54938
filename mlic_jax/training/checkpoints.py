"""Checkpoints of a training run, with Orbax: everything that an exact resume needs.

    WORKDIR/config.json          the configuration of the run
    WORKDIR/checkpoints/STEP/    TrainState of one device, and the best evaluation loss so far

The position in the data is not among them: batch t is a function of the seed and t (data.py). What users load is
WORKDIR/model, a model directory (mlic_jax/coding/model_directory.py).
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.files import write_whole
from mlic_jax.training.configuration import FIELDS
from mlic_jax.training.step import TrainState


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


def check_config(config, path: Path) -> None:
  """ConfigMismatch unless the configuration in the file `path` agrees with `config` in all fields that are not free.

  A field of the model that one of them lacks, as it is newer than the run, is at its default there."""
  defaults = flatten({"model": CodecConfig().to_dict()})
  then, now = defaults | flatten(json.loads(path.read_text())), defaults | flatten(config_to_dict(config))
  missing = "absent"
  differ = [f"{name} ({then.get(name, missing)} -> {now.get(name, missing)})"
            for name in sorted(then.keys() | now.keys())
            if not (name in FIELDS and FIELDS[name].is_free) and then.get(name, missing) != now.get(name, missing)]
  if differ:
    raise ConfigMismatch(f"{path.parent} holds a run of another configuration; these fields differ: "
                         f"{', '.join(differ)}; wanted the same configuration or another --workdir")


def write_config(config, path: Path) -> None:
  """Writes the configuration as JSON, whole or not at all."""
  write_whole(path, json.dumps(config_to_dict(config), indent=2) + "\n")


def storage_problem(error: Exception) -> str | None:
  """One line about a disk that is full or failing; None when `error` is something else.

  TensorStore raises a ValueError with the message of the operating system in it."""
  if not isinstance(error, OSError) and "OS error" not in str(error):
    return None
  reason = re.search(r"OS error [^\]]*", str(error))
  return reason[0] if reason else " ".join(str(error).split())


class Checkpoints:
  """The checkpoints of a workdir: saved asynchronously, the newest `keep` of them kept.

  A disk that is full does not end a training: `save` and `close` return what went wrong, and the next save tries
  again."""

  def __init__(self, workdir: str | os.PathLike, keep: int):
    self.directory = Path(workdir).resolve() / "checkpoints"
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(self.directory, options=options)
    self._problem: str | None = None  # of the last save

  @property
  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, state: TrainState, best_loss: float | None) -> str | None:
    """Starts saving `state`, NumPy arrays that nobody writes to (see parallel.unreplicate), under state.step.

    Returns a line when this or the save before it failed for want of a working disk, None otherwise."""
    before, step = self._settle(), int(state.step)
    if step != self.latest_step:
      args = ocp.args.Composite(state=ocp.args.StandardSave(_fields(state)),
                                best=ocp.args.JsonSave({"loss": best_loss}))
      self._problem = self._attempt(lambda: self._manager.save(step, args=args, force=True))
    return self._problem or before

  def restore(self, like: TrainState) -> tuple[TrainState, float | None]:
    """The newest checkpoint as (state of NumPy arrays, best evaluation loss); `like` gives the structure."""
    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), _fields(like))
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target), best=ocp.args.JsonRestore())
    restored = self._manager.restore(self.latest_step, args=args)
    return like.replace(**restored.state), restored.best["loss"]

  def close(self) -> str | None:
    """Waits until what was started is on disk; returns a line when the last save did not get there."""
    problem = self._settle() or self._problem
    self._manager.close()
    return problem

  def _settle(self) -> str | None:
    return self._attempt(self._manager.wait_until_finished)

  def _attempt(self, work: Callable[[], object]) -> str | None:
    try:
      work()
    except (OSError, ValueError) as error:
      problem = storage_problem(error)
      if problem is None:
        raise
      for partial in self.directory.glob("*.orbax-checkpoint-tmp"):  # what the failed attempt left takes up the disk
        shutil.rmtree(partial, ignore_errors=True)
      return problem
    return None


def _fields(state: TrainState) -> dict[str, Any]:
  return {name: value for name, value in vars(state).items() if value is not None}
