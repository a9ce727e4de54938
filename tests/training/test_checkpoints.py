"""Tests of the checkpoints of a run: unfinished ones are removed, and Orbax is closed however a run ends."""
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import fake_bucket
from helpers.small_training import (  # noqa: F401 (fixtures among them)
  final_state,
  initial_state,
  small_config,
  standin_compiled_once,
  stop_at,
)

from mlic_jax.paths import as_path
from mlic_jax.training import checkpoints as module
from mlic_jax.training import loop, parallel
from mlic_jax.training.checkpoints import Checkpoints, DamagedCheckpoints, Evaluated


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.fixture(name="state")
def first_state(config, standin):
  return parallel.unreplicate(parallel.replicate(initial_state(config)))


# --- what a killed process leaves ------------------------------------------------------

def test_what_a_killed_process_left_unfinished_is_removed_when_the_run_goes_on(config, standin, tmp_path):
  """Also if the killed process had the PID of this one, as in containers."""
  workdir, config.num_steps = tmp_path / "run", 5
  loop.train_and_evaluate(config, workdir)
  for name in ("7.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp-1764000000000000"):
    shutil.copytree(workdir / "checkpoints" / "5", workdir / "checkpoints" / name)
  gone = 2**22 + 1  # above the largest number of a process
  left = [workdir / f".{number}-3.partial" for number in (gone, os.getpid())]
  for path in left:
    path.write_text("{")
  left.append(workdir / f".{'0' * 16}.{gone}.partial")
  left[-1].mkdir()
  alive = workdir / f".{os.getppid()}-1.partial"  # another process, which has not finished yet
  alive.touch()
  for path in (*left, alive):
    os.utime(path, (0, 0))
  before = set(names(workdir)) - {path.name for path in left}
  config.num_steps = 10
  loop.train_and_evaluate(config, workdir)
  assert names(workdir / "checkpoints") == ["10", "5"]
  assert set(names(workdir)) == before


def test_an_unfinished_checkpoint_of_a_bucket_is_removed_as_well(config, standin, tmp_path):
  """A folder in a bucket has no temporary name while it is written; a file in it marks it as complete."""
  config.num_steps = 5
  with fake_bucket.bucket() as url:
    loop.train_and_evaluate(config, f"{url}/run")
    for name in [name for name in fake_bucket.OBJECTS if "/checkpoints/5/" in name]:
      if "commit_success" not in name:
        fake_bucket.put(name.replace("/checkpoints/5/", "/checkpoints/7/"), fake_bucket.OBJECTS[name][0])
    config.num_steps = 10
    loop.train_and_evaluate(config, f"{url}/run")
    steps = {name.split("/")[3] for name in fake_bucket.OBJECTS if "/checkpoints/" in name}
    assert steps == {"5", "10"} and as_path(f"{url}/run").exists()


def test_few_numbers_are_formatted_as_text_while_a_checkpoint_is_read(state, tmp_path):
  """asyncio, in which Orbax reads, makes a text of the result that nobody reads."""
  writer, formatted = Checkpoints(tmp_path, 2), []
  writer.save(state, Evaluated())
  writer.close()
  reader = Checkpoints(tmp_path, 2)
  with np.printoptions(formatter={"float_kind": lambda number: formatted.append(number) or "number"}):
    reader.restore(state)
  reader.close()
  assert len(formatted) <= 2**4 * len(jax.tree.leaves(state))


def test_reading_a_run_does_not_remove_what_it_is_saving(config, state, tmp_path):
  writer = Checkpoints(tmp_path, 2)
  writer.save(state, Evaluated())
  writer.close()
  (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()
  with Checkpoints(tmp_path, 2) as reader:
    assert reader.restore(state) is not None
  assert (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").is_dir()


# --- Orbax is closed -------------------------------------------------------------------

@pytest.fixture(name="open_managers")
def managers_that_are_open(monkeypatch):
  """Returns the managers of Orbax that were created and not closed."""
  opened = []

  class Manager(ocp.CheckpointManager):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      opened.append(self)

    def close(self):
      super().close()
      opened.remove(self)

  monkeypatch.setattr(module.ocp, "CheckpointManager", Manager)
  return opened


def raise_error():
  raise RuntimeError("a bug")


@pytest.mark.parametrize("step", [None, 7])
def test_a_training_closes_its_manager_also_when_it_raises(config, standin, tmp_path, monkeypatch, open_managers, step):
  """The save before it is complete as well."""
  if step:
    stop_at(monkeypatch, step, raise_error)
    with pytest.raises(RuntimeError, match="a bug"):
      loop.train_and_evaluate(config, tmp_path / "run")
    assert names(tmp_path / "run" / "checkpoints") == ["5"]
  else:
    loop.train_and_evaluate(config, tmp_path / "run")
  assert not open_managers


def test_a_start_that_fails_closes_its_manager(config, standin, tmp_path, open_managers):
  config.num_steps = 5
  loop.train_and_evaluate(config, tmp_path / "run")
  for path in (tmp_path / "run" / "checkpoints" / "5").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(b"")
  with pytest.raises(DamagedCheckpoints):
    loop.train_and_evaluate(config, tmp_path / "run")
  assert not open_managers


def test_a_process_that_does_not_write_closes_its_manager(state, tmp_path, monkeypatch, open_managers):
  with Checkpoints(tmp_path, 2) as writer:
    writer.save(state, Evaluated(2.5, 0))
  with monkeypatch.context() as patch:
    patch.setattr(jax, "process_index", lambda *_: 1)
    reader = Checkpoints(tmp_path, 2)
  with reader:
    restored = reader.restore(state)
    assert restored.evaluated.best_loss == 2.5 and len(open_managers) == 1
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
  assert not open_managers
  reader.close()  # a second call does nothing
