"""Claims about stopping and going on: an interrupted run ends in the very bits of an uninterrupted one."""
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from standin_codec import StandIn
from test_training import rows, small_config, standin_model  # noqa: F401 (fixtures)

from mlic_jax.checkpoint import load_model
from mlic_jax.config import CodecConfig
from mlic_jax.training import loop, parallel
from mlic_jax.training.checkpoint import Checkpoints, ConfigMismatch
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import create_state, make_train_step


class PowerCut(BaseException):
  """Ends the process as kill -9 would: nothing catches it."""


def stop_at(monkeypatch, step, stop):
  """Calls `stop` when the report of `step` would be made."""
  usual = loop.Report.step

  def report_step(self, done):
    usual(self, done)
    if done == step:
      stop()
  monkeypatch.setattr(loop.Report, "step", report_step)


def cut():
  raise PowerCut


def final_state(config, workdir):
  like = create_state(config, StandIn(CodecConfig(**config.model)), make_optimizer(config))
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
def test_the_command_killed_hard_and_repeated_ends_in_the_same_bits(config, tmp_path):
  """The real model and process: kill -9 twice, SIGTERM once, against one run in peace."""
  def start(workdir):
    changes = dict(num_steps=30, checkpoint_every=4, eval_every=15, log_every=5, data_dir=config.data_dir,
                   crop_size=64, eval_crop_size=64, eval_images=2, eval_batch_size=2, batch_size=2, holdout_every=4,
                   **{"model.M": 32, "model.num_slices": 2, "model.N": 16, "model.contexts": "()"})
    command = [sys.executable, "train.py", "--config=configs/nano.py", f"--workdir={workdir}"]
    return subprocess.Popen(command + [f"--config.{name}={value}" for name, value in changes.items()],
                            env=dict(os.environ, MLIC_JAX_CACHE=str(tmp_path / "cache")))

  assert start(tmp_path / "whole").wait() == 0
  saved = tmp_path / "cut" / "checkpoints"
  for signum, after in ((signal.SIGKILL, 4), (signal.SIGKILL, 12), (signal.SIGTERM, 16)):
    run = start(tmp_path / "cut")
    while run.poll() is None and not (saved / str(after)).is_dir():
      time.sleep(0.05)
    run.send_signal(signum)
    assert run.wait() == {signal.SIGKILL: -9, signal.SIGTERM: 143}[signum]
  assert start(tmp_path / "cut").wait() == 0
  whole, cut_run = load_model(tmp_path / "whole" / "model"), load_model(tmp_path / "cut" / "model")
  assert whole.training["step"] == cut_run.training["step"]
  jax.tree.map(np.testing.assert_array_equal, whole.variables, cut_run.variables)
