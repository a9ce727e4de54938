"""Claims about stopping and going on: an interrupted run ends in the very bits of an uninterrupted one."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from standin_codec import StandIn
from test_training import rows, small_config, standin_model  # noqa: F401 (fixtures)

from mlic_jax.coding.model_directory import load_model
from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import build
from mlic_jax.training import loop, parallel
from mlic_jax.training.checkpoints import Checkpoints, ConfigMismatch
from mlic_jax.training.configuration import load_config
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import create_state, make_train_step


class PowerCut(BaseException):
  """Ends the process as kill -9 would: nothing catches it."""


def stop_at(monkeypatch, step, stop):
  """Calls `stop` when the report of `step` would be made."""
  usual = loop.RunLog.step

  def report_step(self, done):
    usual(self, done)
    if done == step:
      stop()
  monkeypatch.setattr(loop.RunLog, "step", report_step)


def cut():
  raise PowerCut


def final_state(config, workdir, model=StandIn):
  like = create_state(config, model(CodecConfig(**config.model)), make_optimizer(config))
  checkpoints = Checkpoints(workdir, config.keep_checkpoints)
  state, best_loss = checkpoints.restore(like)
  checkpoints.close()
  assert state.step == config.num_steps
  return jax.device_get((state, best_loss))


@pytest.mark.parametrize("step, stop", [
    (11, cut), (4, cut), (7, lambda: os.kill(os.getpid(), signal.SIGTERM))],
    ids=["killed", "killed_before_the_first_checkpoint", "sigterm"])
def test_an_interrupted_run_continued_is_bit_for_bit_the_uninterrupted_one(
    config, standin, tmp_path, monkeypatch, step, stop):
  loop.train_and_evaluate(config, tmp_path / "whole")
  with monkeypatch.context() as patch:
    stop_at(patch, step, stop)
    with pytest.raises((PowerCut, loop.Interrupted)):
      loop.train_and_evaluate(config, tmp_path / "cut")
  loop.train_and_evaluate(config, tmp_path / "cut")
  jax.tree.map(np.testing.assert_array_equal, final_state(config, tmp_path / "whole"),
               final_state(config, tmp_path / "cut"))
  whole, again = (json.loads((tmp_path / name / "model" / "config.json").read_text()) for name in ("whole", "cut"))
  assert whole == again  # with the figures of the evaluation that the model is of
  for name in ("metrics.csv", "eval.csv"):
    steps = [row["step"] for row in rows(tmp_path / "cut" / name)]
    assert steps == [row["step"] for row in rows(tmp_path / "whole" / name)]


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_it_came_at(config, standin, tmp_path, monkeypatch, signum, status):
  before = signal.getsignal(signum)
  stop_at(monkeypatch, 7, lambda: os.kill(os.getpid(), signum))
  with pytest.raises(loop.Interrupted, match="at step 7") as stopped:
    loop.train_and_evaluate(config, tmp_path / "run")
  assert 128 + stopped.value.signum == status
  assert (tmp_path / "run" / "checkpoints" / "7").is_dir()
  assert signal.getsignal(signum) is before


def test_a_finished_run_can_be_made_longer_but_not_otherwise_changed(config, standin, tmp_path):
  config.num_steps = 6
  loop.train_and_evaluate(config, tmp_path / "run")
  config.num_steps = 8
  loop.train_and_evaluate(config, tmp_path / "run")
  assert final_state(config, tmp_path / "run")[0].step == 8
  config.model.M, config.learning_rate = 16, 0.5
  message = r"these fields differ: learning_rate \(0.001 -> 0.5\), model.M \(8 -> 16\)"
  with pytest.raises(ConfigMismatch, match=message):
    loop.train_and_evaluate(config, tmp_path / "run")


def test_a_saved_state_does_not_change_when_its_memory_is_reused(config, tmp_path):
  model, optimizer = StandIn(CodecConfig(**config.model)), make_optimizer(config)
  step = parallel.on_all_devices(make_train_step(config, model, optimizer), donate_state=True)
  state = parallel.replicate(create_state(config, model, optimizer))
  kept = parallel.unreplicate(state)
  copy = jax.tree.map(np.copy, kept)
  for _ in range(3):
    state, _ = step(state, parallel.shard(np.zeros((4, 64, 64, 3), np.uint8)))
  jax.tree.map(np.testing.assert_array_equal, kept, copy)


@pytest.mark.slow
def test_the_command_killed_ten_times_at_random_ends_in_the_same_bits(config, tmp_path):
  """The real model and process: SIGTERM once and kill -9 ten times, wherever it comes, against one run in peace."""
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
