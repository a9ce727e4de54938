"""Tests of stopping on a signal: the state is saved first, whatever signals follow."""
import os
import signal

import jax
import numpy as np
import pytest
from helpers.small_training import (  # noqa: F401 (fixtures among them)
  final_state,
  rows,
  small_config,
  standin_compiled_once,
  stop_at,
  uninterrupted_run,
)

from mlic_jax.training import loop
from mlic_jax.training.checkpoints import Checkpoints
from mlic_jax.training.preemption import Interrupted, signals
from mlic_jax.training.validation import Validation


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_it_came_at(config, standin, tmp_path, monkeypatch, signum, status):
  before = signal.getsignal(signum)
  stop_at(monkeypatch, 7, lambda: os.kill(os.getpid(), signum))
  with pytest.raises(Interrupted, match="at step 7") as stopped:
    loop.train_and_evaluate(config, tmp_path / "run")
  assert 128 + stopped.value.signum == status
  assert (tmp_path / "run" / "checkpoints" / "7").is_dir()
  assert signal.getsignal(signum) is before


@pytest.mark.parametrize("sent", [[signal.SIGINT] * 2, [signal.SIGTERM] * 3, [signal.SIGINT, signal.SIGTERM]],
                         ids=["sigint_twice", "sigterm_three_times", "sigint_and_sigterm"])
@pytest.mark.parametrize("when", ["at_once", "while_saving"])
def test_further_signals_do_not_keep_the_state_from_being_saved(config, standin, tmp_path, monkeypatch, sent, when):
  def dies(*_):
    raise AssertionError("the signal acted as usual")
  usual = {number: signal.signal(number, dies) for number in (signal.SIGINT, signal.SIGTERM)}
  first, *further = sent
  save = Checkpoints.save

  def save_and_send(self, state, *args):
    if int(state.step) == 7:
      for number in further:
        os.kill(os.getpid(), number)
    return save(self, state, *args)

  def send():
    for number in sent if when == "at_once" else [first]:
      os.kill(os.getpid(), number)
  config.eval_every = 12  # none before the stop
  if when == "while_saving":
    monkeypatch.setattr(Checkpoints, "save", save_and_send)
  stop_at(monkeypatch, 7, send)
  try:
    with pytest.raises(Interrupted, match="at step 7; the same command continues") as stopped:
      loop.train_and_evaluate(config, tmp_path / "run")
  finally:
    for number, handler in usual.items():
      signal.signal(number, handler)
  assert stopped.value.signum == first
  assert (tmp_path / "run" / "checkpoints" / "7").is_dir() and not (tmp_path / "run" / "run.lock").exists()


def evaluated_steps(workdir):
  return [row["step"] for row in rows(workdir / "eval.csv")][::2]  # of two rates


@pytest.mark.parametrize("step", [6, 12], ids=["on_an_evaluation_step", "in_the_last_step"])
def test_an_evaluation_that_a_signal_kept_from_being_made_is_made_when_the_run_continues(
    config, standin, whole, tmp_path, monkeypatch, step):
  with monkeypatch.context() as patch:
    stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"at step {step}"):
      loop.train_and_evaluate(config, tmp_path / "cut")
  assert str(step) not in evaluated_steps(tmp_path / "cut")
  loop.train_and_evaluate(config, tmp_path / "cut")
  loop.train_and_evaluate(config, tmp_path / "cut")  # and only once
  for name in ("eval.csv", "model/config.json"):
    assert (tmp_path / "cut" / name).read_text() == (whole[0] / name).read_text()
  cut = final_state(config, tmp_path / "cut")
  assert whole[1].evaluated == cut.evaluated and cut.evaluated.step == 12
  jax.tree.map(np.testing.assert_array_equal, whole[1].state, cut.state)


def test_a_signal_in_the_middle_of_an_evaluation_does_not_wait_for_its_end(config, standin, tmp_path, monkeypatch):
  usual = Validation.evaluate

  def evaluate(self, params, step, stop=None):
    os.kill(os.getpid(), signal.SIGHUP)
    return usual(self, params, step, stop)

  with monkeypatch.context() as patch:
    patch.setattr(Validation, "evaluate", evaluate)
    with pytest.raises(Interrupted, match="stopped by SIGHUP at step 6; the same command continues") as stopped:
      loop.train_and_evaluate(config, tmp_path / "run")
  assert stopped.value.status == 129
  assert evaluated_steps(tmp_path / "run") == []
  loop.train_and_evaluate(config, tmp_path / "run")
  assert evaluated_steps(tmp_path / "run") == ["6", "12"]


def test_under_nohup_a_run_goes_on_when_the_terminal_closes():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals() as received:
      os.kill(os.getpid(), signal.SIGHUP)
      assert received == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)
