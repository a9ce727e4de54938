"""Tests of training runs: their files, when they stop, and refusals."""
import csv
import errno
import json
import sys
import weakref

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import TINY
from helpers.linear_stub import StandIn
from helpers.small_training import initial_state, rows, small_config, standin_compiled_once  # noqa: F401 (fixtures)
from PIL import Image

from configs import nano
from mlic_jax.__main__ import main_of_one_command
from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.model.mlic import build
from mlic_jax.training import loop, parallel, pmap_programs
from mlic_jax.training.checkpoints import Evaluated
from mlic_jax.training.config_schema import check_fields
from mlic_jax.training.metrics_buffer import NonFiniteLoss
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.run_log import CsvLog
from mlic_jax.training.step import create_state, make_train_step
from mlic_jax.training.validation import Validation


def test_the_codec_learns_a_batch_by_heart():
  c = nano.get_config()
  c.optimizer, c.learning_rate, c.warmup_steps, c.num_steps, c.ema_decay = "adam", 2e-3, 5, 100, 0.0
  c.lmbdas = c.lmbdas[:TINY.num_rates]
  small = dict(TINY.to_dict(), transforms="helpers.light_transforms", hyper_widths=(16, 16), contexts=(),
               entropy_widths=(8,), num_slices=1, lrp_widths=())
  model, optimizer = build(CodecConfig.from_dict(small)), make_optimizer(c)
  state = parallel.replicate(create_state(c, model, optimizer))
  step = parallel.pmap_over_batch(make_train_step(c, model, optimizer, None, "cpu"), donate_state=True)
  x = np.kron(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8), np.ones((1, 8, 8, 1), np.uint8))
  losses = []
  for _ in range(40):
    state, metrics = step(state, parallel.shard(x))
    losses.append(float(metrics["loss"][0]))
  assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_run_is_continued_into_an_end_that_was_not_planned(config, standin, tmp_path):
  loop.train_and_evaluate(config, tmp_path / "run")
  config.update(dict(num_steps=16, decay_start=12))
  loop.train_and_evaluate(config, tmp_path / "run")
  rates = [float(row["learning_rate"]) for row in rows(tmp_path / "run" / "metrics.csv")]
  assert rates[1] == rates[2] == pytest.approx(1e-3) and rates[3] == pytest.approx(1e-3 * (1 + 0.75 + 0.5 + 0.25) / 4)


def test_a_run_leaves_its_model_its_figures_and_its_configuration(config, standin, tmp_path, capsys):
  config.eval_pictures = 2
  loop.train_and_evaluate(config, tmp_path / "run")
  workdir = tmp_path / "run"
  assert json.loads((workdir / "config.json").read_text())["model"]["M"] == 8
  assert [row["step"] for row in rows(workdir / "metrics.csv")] == ["4", "8", "12"]
  evaluations = rows(workdir / "eval.csv")
  assert [(row["step"], row["quality"]) for row in evaluations] == [("6", "1"), ("6", "2"), ("12", "1"), ("12", "2")]
  assert list((workdir / "tensorboard").iterdir())
  printed = capsys.readouterr().out
  assert "step 12/12" in printed and "9 images, 3 held out" in printed


def test_the_state_is_in_the_memory_of_a_device_once(config, standin, tmp_path, monkeypatch):
  first, still_there = [], []
  usual = loop.RunLog.step

  def created(*args):
    state = create_state(*args)
    first.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(state))
    return state

  def step(self, done):
    still_there.append([leaf() for leaf in first if leaf() is not None])
    usual(self, done)

  monkeypatch.setattr(loop, "create_state", created)
  monkeypatch.setattr(loop.RunLog, "step", step)
  loop.train_and_evaluate(config, tmp_path / "run")
  assert len(first) > 5 and still_there == [[]] * config.num_steps


def test_the_exported_model_is_that_of_the_best_evaluation(config, standin, tmp_path):
  loop.train_and_evaluate(config, tmp_path / "run")
  exported = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
  losses = {step: np.mean([float(row["loss"]) for row in rows(tmp_path / "run" / "eval.csv") if row["step"] == step])
            for step in ("6", "12")}
  assert str(exported["training"]["step"]) == min(losses, key=losses.get)
  assert exported["training"]["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-4)


def replace_training(monkeypatch, before=lambda state: state, after=lambda state: state):
  """Replaces the states (devices, ...) before and after each step of the next runs, whose program is the usual one."""
  usual = pmap_programs.training

  def training(*args, **options):
    program = usual(*args, **options)

    def step(state, *others):
      new, *rest = program(before(state), *others)
      return after(new), *rest
    return step

  monkeypatch.setattr(pmap_programs, "training", training)


def test_the_average_is_what_is_exported_and_evaluated_on_every_held_out_photograph(
    config, standin, tmp_path, monkeypatch):
  config.num_steps, config.eval_every = 2, 2
  config.eval_dir, config.eval_batch_size = str(tmp_path / "held_out"), 2
  pixels = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)  # the last batch is half padding
  (tmp_path / "held_out").mkdir()
  for i, each in enumerate(pixels):
    Image.fromarray(each).save(tmp_path / "held_out" / f"{i}.png")
  model = StandIn(CodecConfig(**config.model))
  average = jax.tree.map(lambda p: np.float32(0.7) * np.asarray(p), initial_state(config).params)
  replace_training(monkeypatch, after=lambda new: new.replace(ema_params=parallel.replicate(average)))
  loop.train_and_evaluate(config, tmp_path / "run")
  exported, apply = load_model(tmp_path / "run" / "model").variables["params"], jax.jit(model.apply)
  jax.tree.map(np.testing.assert_array_equal, exported, average)
  for quality, row in enumerate(rows(tmp_path / "run" / "eval.csv"), start=1):
    x = pixels / np.float32(255)
    out = apply({"params": average}, x, quality)
    mse = float(np.mean((np.round(np.clip(out.x_hat, 0, 1) * 255) / 255 - x)**2))
    bpp = float(out.y_bits.sum() + out.z_bits.sum()) / (3 * 64 * 64)
    assert (float(row["mse"]), float(row["bpp"])) == pytest.approx((mse, bpp), rel=1e-4)


def test_a_full_disk_is_said_and_the_next_save_tries_again(config, standin, tmp_path, monkeypatch, capsys):
  usual, calls = ocp.CheckpointManager.save, []

  def save(self, step, *args, **kwargs):
    calls.append(step)
    if step == 5:
      raise ValueError("Failed writing: a.__lock [OS error 28: ENOSPC No space left on device]")
    return usual(self, step, *args, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, "save", save)
  loop.train_and_evaluate(config, tmp_path / "run")
  assert "no checkpoint at step 5: OS error 28: ENOSPC No space left on device" in capsys.readouterr().out
  assert calls == [5, 10, 12]
  assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["10", "12"]


def test_an_end_that_cannot_be_saved_is_an_error(config, standin, tmp_path, monkeypatch):
  def save(self, step, *args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")
  monkeypatch.setattr(ocp.CheckpointManager, "save", save)
  with pytest.raises(loop.SaveError, match="step 12 is not saved: .*No space left on device"):
    loop.train_and_evaluate(config, tmp_path / "run")


def test_a_model_that_the_disk_does_not_take_leaves_the_old_one(config, standin, tmp_path, monkeypatch, capsys):
  loop.train_and_evaluate(config, tmp_path / "run")
  before = (tmp_path / "run" / "model" / "config.json").read_bytes()
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")
  monkeypatch.setattr(np, "savez_compressed", full)
  model = StandIn(CodecConfig(**config.model))
  validation = Validation(config, model, np.zeros((1, 64, 64, 3), np.uint8), tmp_path / "run", Evaluated())
  state = parallel.replicate(initial_state(config))
  problem = validation.export(state, 13, 0.1, [])
  assert "No space left" in problem
  assert (tmp_path / "run" / "model" / "config.json").read_bytes() == before
  assert not list((tmp_path / "run").glob(".model*"))


def test_a_few_steps_are_traced(config, standin, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)  # which the profiler imports if it is there
  config.profile_steps = "3:5"
  loop.train_and_evaluate(config, tmp_path / "run")
  assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_single_rate_model_trains_on_its_lmbda(config, standin, tmp_path):
  config.model.num_rates, config.lmbda = 0, 0.013
  loop.train_and_evaluate(config, tmp_path / "run")
  assert [row["quality"] for row in rows(tmp_path / "run" / "eval.csv")] == ["", ""]


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_the_checkpoint(
    config, standin, tmp_path, monkeypatch):
  def poisoned(state):
    if state.step[0] != 8:  # the ninth step is another one
      return state
    return state.replace(params=parallel.replicate(jax.tree.map(lambda p: np.full_like(p[0], np.nan), state.params)))

  with monkeypatch.context() as patch:
    replace_training(patch, before=poisoned)
    with pytest.raises(NonFiniteLoss, match=r"at step 9 .*last good checkpoint is step 5") as error:
      loop.train_and_evaluate(config, tmp_path / "run")
  assert "\n" not in str(error.value)
  assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["5"]
  loop.train_and_evaluate(config, tmp_path / "run")  # and that checkpoint is good


@pytest.mark.parametrize("changes, message", [
    (dict(optimizer="sgd"), "optimizer='sgd'; wanted one of adam, muon, soap"),
    (dict(partial_probability=2.0), "partial_probability=2.0; wanted 0 to 1"),
    (dict(profile_steps="5"), "profile_steps='5'; wanted 'a:b'"),
    (dict(accumulate_steps=0), "accumulate_steps=0; wanted an integer of at least 1"),
    (dict(learning_rte=1), "'learning_rte' that nothing reads; the nearest known one is 'learning_rate'"),
    (dict(lmbdas=(0.1,)), "1 values in lmbdas; wanted model.num_rates=2"),
    (dict(distortion="l1"), "no distortion 'l1' in mlic_jax/distortions/; the nearest is"),
    (dict(crop_size=100), "multiple of 64"),
    (dict(schedule="step"), "lacks the field 'decay_steps'"),
    (dict(schedule="wsd", decay_start=12), "decay_start=12; wanted 0, or a step from warmup_steps=2 on and before num"),
    (dict(schedule="linear"), "schedule='linear'; wanted one of cosine, wsd, step"),
    (dict(distortion="ms_ssim"), "the distortion ms_ssim needs at least 176 pixels"),
    (dict(model=dict(num_slice=3)), "'num_slice'; the nearest is 'num_slices'")])
def test_a_bad_configuration_is_refused_in_one_line(config, changes, message):
  with config.unlocked():
    for name, value in changes.items():
      config[name] = value
  with pytest.raises(ConfigError, match=message) as error:
    check_fields(config)
  assert "\n" not in str(error.value)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 8)
  with pytest.raises(ConfigError, match="batch_size=12 does not divide over 8 devices; wanted a multiple of 8"):
    parallel.check_batch_size("batch_size", 12)
  with pytest.raises(ConfigError, match="8 devices x accumulate_steps=2; wanted a multiple of 16"):
    parallel.check_batch_size("batch_size", 24, accumulate_steps=2)


@pytest.mark.parametrize("arguments, message", [
    (["--config.learning_rat=1"], "field 'learning_rat'; the nearest known one is 'learning_rate'"),
    (["--config.model.num_slice=1"], "field 'model.num_slice'; the nearest known one is 'model.num_slices'"),
    (["--config.batch_size=many"], "batch_size"),
    (["--config.data_dir=missing"], "missing: no such folder"),
    ([], "data_dir is empty"),
    (["--steps=3"], "steps")])
def test_the_command_refuses_a_bad_argument_in_one_line(tmp_path, capsys, arguments, message):
  given = ["--config=configs/nano.py", f"--workdir={tmp_path / 'run'}", *arguments]
  assert main_of_one_command("train", "train.py", given) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and err.startswith("train.py: ") and message in err
  assert not (tmp_path / "run").exists()


def test_an_evaluation_that_is_no_number_does_not_stop_later_exports(config, tmp_path, monkeypatch):
  exported, losses = [], [np.nan, 3.0, 4.0, np.nan, 2.0]
  monkeypatch.setattr(Validation, "evaluate", lambda self, params, step, stop: ([dict(loss=losses[step])], None))
  monkeypatch.setattr(Validation, "export", lambda self, state, step, loss, rows: exported.append(step))
  model, optimizer = StandIn(CodecConfig(**config.model)), make_optimizer(config)
  held_out, state = np.zeros((1, 64, 64, 3), np.uint8), create_state(config, model, optimizer)
  for best_loss in (None, np.nan):
    validation = Validation(config, model, held_out, tmp_path, Evaluated(best_loss))
    for step in range(5):
      validation.run(state, step, loop.RunLog(tmp_path, 0, 5, 0, quiet=True), None)
    assert exported == [1, 4] and validation.evaluated.best_loss == 2.0
    exported.clear()


@pytest.mark.parametrize("fidelity, text", [({}, "PSNR 26.50 dB"), ({"ms_ssim": 0.93194}, "MS-SSIM 0.9319")])
def test_a_run_prints_the_fidelity_that_it_optimizes(tmp_path, capsys, fidelity, text):
  row = dict(step=1, quality=2, lmbda=0.01, loss=1.5, bpp=0.25, psnr=26.5, **fidelity)
  with loop.RunLog(tmp_path, 0, 5, 0) as run_log:
    run_log.train(row)
    run_log.evaluation(1, [row], 1.5, exported=True)
  trained, evaluated = capsys.readouterr().out.splitlines()[-2:]
  assert f"0.2500 bpp  {text}" in trained and f"0.250 bpp {text}" in evaluated


def test_figures_of_a_run_that_had_other_columns_are_kept(tmp_path):
  path = tmp_path / "metrics.csv"
  path.write_text("step,loss,forgotten\n1,2.5,7\n2,2.25,8\n3,2.125,9\n3,2")
  log = CsvLog(path, ("step", "loss", "new"), step=2)
  log.write({"step": 3, "loss": 2.0, "new": 1.0})
  log.close()
  with path.open(newline="") as file:
    assert list(csv.reader(file)) == [["step", "loss", "new"], ["1", "2.5", ""], ["2", "2.25", ""], ["3", "2", "1"]]
