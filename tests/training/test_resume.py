"""Tests of resuming: an interrupted run ends with the same bits as an uninterrupted one."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.linear_stub import StandIn
from helpers.small_training import (  # noqa: F401 (fixtures among them)
  PowerCut,
  cut,
  final_state,
  initial_state,
  rows,
  small_config,
  standin_compiled_once,
  stop_at,
  training_program,
  uninterrupted_run,
)
from ml_collections import ConfigDict

from mlic_jax import folder_lock
from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.config import CodecConfig
from mlic_jax.folder_lock import FolderInUse
from mlic_jax.model.mlic import build
from mlic_jax.training import loop, parallel
from mlic_jax.training.checkpoints import (
  Checkpoints,
  ConfigMismatch,
  DamagedCheckpoints,
  Evaluated,
  check_config,
  write_config,
)
from mlic_jax.training.config_schema import load_config
from mlic_jax.training.pmap_programs import build_options, evaluation_key
from mlic_jax.training.preemption import NO_SIGNALS, Interrupted
from mlic_jax.training.preflight import workdir_lock
from mlic_jax.training.step import make_eval_step


@pytest.mark.parametrize("step, stop", [
    (11, cut), (4, cut), (7, lambda: os.kill(os.getpid(), signal.SIGTERM))],
    ids=["killed", "killed_before_the_first_checkpoint", "sigterm"])
def test_an_interrupted_run_continued_is_bit_for_bit_the_uninterrupted_one(
    config, standin, whole, tmp_path, monkeypatch, step, stop):
  with monkeypatch.context() as patch:
    stop_at(patch, step, stop)
    with pytest.raises((PowerCut, Interrupted)):
      loop.train_and_evaluate(config, tmp_path / "cut")
  loop.train_and_evaluate(config, tmp_path / "cut")
  whole, state = whole
  jax.tree.map(np.testing.assert_array_equal, state, final_state(config, tmp_path / "cut"))
  exported, again = (json.loads((run / "model" / "config.json").read_text()) for run in (whole, tmp_path / "cut"))
  assert exported == again  # with the figures of the evaluation that the model is of
  for name in ("metrics.csv", "eval.csv"):
    steps = [row["step"] for row in rows(tmp_path / "cut" / name)]
    assert steps == [row["step"] for row in rows(whole / name)]


def test_a_finished_run_can_be_made_longer_but_not_otherwise_changed(config, standin, tmp_path, monkeypatch):
  """A change is refused before anything is computed."""
  config.num_steps = 5
  loop.train_and_evaluate(config, tmp_path / "run")
  config.num_steps = 12
  loop.train_and_evaluate(config, tmp_path / "run")
  assert final_state(config, tmp_path / "run").state.step == 12
  config.model.M, config.learning_rate = 16, 0.5
  monkeypatch.setattr(loop, "create_state", None)
  message = r"these fields differ: learning_rate \(0.001 -> 0.5\), model.M \(8 -> 16\)"
  with pytest.raises(ConfigMismatch, match=message):
    loop.train_and_evaluate(config, tmp_path / "run")


def test_a_run_that_continues_with_other_settings_of_training_finds_its_evaluation(config):
  """An evaluation is traced from model and distortion alone."""
  model = StandIn(CodecConfig(**config.model))
  key = evaluation_key(config, model)
  only_the_distortion = ConfigDict(dict(distortion=config.distortion))
  evaluate = jax.vmap(make_eval_step(only_the_distortion, model), axis_name=parallel.AXIS,
                      in_axes=(None, 0, 0, None, None, None))
  shape = jax.ShapeDtypeStruct
  params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3)))["params"]
  sums, _ = jax.eval_shape(evaluate, params, shape((1, 2, 64, 64, 3), np.uint8), shape((1, 2), np.float32), 1.0, 0.1,
                           np.zeros(3))
  assert {"loss", "bpp", "weight"} <= set(sums)
  config.num_steps, config.learning_rate, config.optimizer, config.seed = 99, 0.5, "adam", 7
  assert evaluation_key(config, model) == key is not None
  assert evaluation_key(config, StandIn(CodecConfig(**dict(config.model, M=16)))) != key
  config.distortion = "ms_ssim"
  assert evaluation_key(config, model) != key


def test_a_saved_state_does_not_change_when_its_memory_is_reused(config, standin):
  step, state = training_program(config), parallel.replicate(initial_state(config))
  kept = parallel.unreplicate(state)
  copy = jax.tree.map(np.copy, kept)
  for _ in range(3):
    state, *_ = step(state, parallel.shard(np.zeros((2, 64, 64, 3), np.uint8)), None, NO_SIGNALS)
  jax.tree.map(np.testing.assert_array_equal, kept, copy)


@pytest.mark.slow
def test_the_command_killed_ten_times_at_random_ends_in_the_same_bits(config, tmp_path):
  """A real run with one SIGTERM and ten kill -9 at random times, against an uninterrupted run."""
  changes = dict(num_steps=60, checkpoint_every=4, eval_every=30, log_every=5, data_dir=config.data_dir,
                 crop_size=64, eval_crop_size=64, eval_images=2, eval_batch_size=2, batch_size=2, holdout_every=4,
                 **{"model.M": 32, "model.num_slices": 2, "model.N": 16, "model.contexts": ()})

  def start(workdir):
    command = [sys.executable, "train.py", "--config=configs/nano.py", f"--workdir={workdir}"]
    return subprocess.Popen(command + [f"--config.{name}={value}" for name, value in changes.items()],
                            env=dict(os.environ, MLIC_JAX_CACHE=str(tmp_path / "cache")))

  def steps(workdir):
    return [int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()]

  assert start(tmp_path / "whole").wait() == 0
  began = time.monotonic()
  assert start(tmp_path / "again").wait() == 0  # without compilation, as all that follow
  seconds = time.monotonic() - began

  run, rng = start(tmp_path / "cut"), np.random.default_rng(0)
  while run.poll() is None and not steps(tmp_path / "cut"):
    time.sleep(0.05)
  run.send_signal(signal.SIGTERM)
  assert run.wait() == 143
  assert max(steps(tmp_path / "cut")) >= 4
  kills = 0
  while kills < 10:
    run = start(tmp_path / "cut")
    with contextlib.suppress(subprocess.TimeoutExpired):
      run.wait(rng.uniform(0.1, 0.9) * seconds)
    if run.poll() is None:
      run.kill()
      assert run.wait() == -signal.SIGKILL
      kills += 1
    else:  # it came to its end before it was killed, and starts over
      assert run.returncode == 0
      shutil.rmtree(tmp_path / "cut")
  assert start(tmp_path / "cut").wait() == 0
  models = [load_model(tmp_path / name / "model") for name in ("whole", "cut")]
  assert models[0].training == models[1].training
  jax.tree.map(np.testing.assert_array_equal, *(model.variables for model in models))
  config = load_config("configs/nano.py")
  config.update_from_flattened_dict(changes)
  states = [final_state(config, tmp_path / name, build) for name in ("whole", "cut")]
  jax.tree.map(np.testing.assert_array_equal, *states)


# --- what a workdir may hold ------------------------------------------------------------

def damage(checkpoint):
  for path in checkpoint.rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(path.read_bytes()[:20])


def test_a_damaged_newest_checkpoint_is_named_and_the_run_continues_at_the_one_before(
    config, standin, tmp_path, caplog):
  loop.train_and_evaluate(config, tmp_path / "run")
  whole = final_state(config, tmp_path / "run")
  damage(tmp_path / "run" / "checkpoints" / "12")
  loop.train_and_evaluate(config, tmp_path / "run")
  assert [record.getMessage() for record in caplog.records if "checkpoints/12 is damaged" in record.getMessage()]
  jax.tree.map(np.testing.assert_array_equal, whole, final_state(config, tmp_path / "run"))
  assert [row["step"] for row in rows(tmp_path / "run" / "metrics.csv")] == ["4", "8", "12"]

  for step in ("10", "12"):
    damage(tmp_path / "run" / "checkpoints" / step)
  with pytest.raises(DamagedCheckpoints, match="none of the checkpoints 10, 12 can be read") as error:
    loop.train_and_evaluate(config, tmp_path / "run")
  assert "\n" not in str(error.value)


def test_a_second_run_in_a_workdir_is_refused_and_names_the_first(config, standin, tmp_path):
  with workdir_lock(tmp_path / "run"):
    with pytest.raises(FolderInUse, match=rf"host {socket.gethostname()}, process {os.getpid()}, since 20") as error:
      loop.train_and_evaluate(config, tmp_path / "run")
  assert "\n" not in str(error.value)
  assert list((tmp_path / "run").iterdir()) == []


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path, monkeypatch):
  monkeypatch.setattr(folder_lock, "HEARTBEAT", 0.1)
  monkeypatch.setattr(folder_lock, "TIMEOUT", 0.5)
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  killed = dict(host="here", process=gone.pid, started="1", since="then", run="x")
  for machine in (folder_lock._machine(), "elsewhere"):  # where a process is looked for, and where a file is watched
    (tmp_path / "run.lock").write_text(json.dumps(dict(killed, machine=machine)))
    with workdir_lock(tmp_path) as lock:
      time.sleep(0.3)
      assert folder_lock.read_lock(tmp_path / "run.lock")["run"] == lock.run
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_run_on_another_machine_holds_while_it_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(folder_lock, "HEARTBEAT", 0.1)
  with workdir_lock(tmp_path):
    monkeypatch.setattr(folder_lock, "_machine", lambda: "elsewhere")
    with pytest.raises(FolderInUse):
      workdir_lock(tmp_path).__enter__()


def test_only_complete_checkpoints_count(config, standin, tmp_path):
  state = initial_state(config)
  checkpoints = Checkpoints(tmp_path, 2)
  assert checkpoints.latest_step is None
  checkpoints.save(parallel.unreplicate(parallel.replicate(state)), Evaluated())
  (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()  # as a save that is under way, or was cut off
  checkpoints.close()
  assert checkpoints.latest_step == 0


def test_a_run_whose_unrolling_is_a_field_of_the_model_goes_on_with_any_other(config, standin, tmp_path):
  """As older versions wrote it, in config files and in config.json."""
  config.num_steps = 5
  config.model.scan_unroll = 2
  loop.train_and_evaluate(config, tmp_path / "run")
  assert build_options(config)["scan_unroll"] == 2
  del config.model["scan_unroll"]
  config.num_steps = 12
  loop.train_and_evaluate(config, tmp_path / "run")
  assert final_state(config, tmp_path / "run").state.step == 12
  assert build_options(config)["scan_unroll"] == 0
  config.scan_unroll = 1
  assert build_options(config)["scan_unroll"] == 1


def test_what_does_not_change_a_step_may_change_between_and_what_changes_its_rounding_is_said(
    config, tmp_path, caplog):
  write_config(config, tmp_path / "config.json", {"jax": "0"})
  config.accumulate_steps, config.remat, config.scan_unroll, config.eval_batch_size = 2, True, 1, 1
  check_config(config, tmp_path / "config.json")
  assert not caplog.records
  config.bfloat16_transforms, config.entropy_precision = True, "high"
  check_config(config, tmp_path / "config.json")
  assert ["bfloat16_transforms was False and is True", "entropy_precision was highest and is high"] == [
      record.getMessage().split(": ")[1].split(",")[0] for record in caplog.records]
