"""Tests of the held-out images of a run that continues on a changed folder."""
import json
import os

import numpy as np
import pytest
from helpers.linear_stub import StandIn
from helpers.small_training import cut, rows, small_config, standin_compiled_once, stop_at  # noqa: F401 (fixtures)
from PIL import Image

from mlic_jax.config import CodecConfig
from mlic_jax.data.holdout import HeldOut
from mlic_jax.training import loop, parallel, preflight
from mlic_jax.training.checkpoints import Evaluated
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.preemption import Stop
from mlic_jax.training.step import create_state
from mlic_jax.training.validation import Validation


def exported(workdir):
  return json.loads((workdir / "model" / "config.json").read_text())["training"]


def mean_loss(workdir, step):
  return np.mean([float(row["loss"]) for row in rows(workdir / "eval.csv") if row["step"] == str(step)])


def add_images(folder, low, high):
  """Adds thirty images of random values in blocks of 8x8 pixels, of which some are held out."""
  rng = np.random.default_rng(1)
  for i in range(30):
    pixels = rng.integers(low, high, (9, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(folder / f"new{i:02}.png")


def test_a_better_model_is_exported_after_harder_images_were_added(config, standin, tmp_path, capsys):
  config.num_steps = config.eval_every = 6
  workdir = tmp_path / "run"
  loop.train_and_evaluate(config, workdir)
  before = exported(workdir)["eval_loss"]
  add_images(tmp_path / "photographs", 250, 256)  # white, where an untrained model gives black
  config.num_steps = config.eval_every = 80
  loop.train_and_evaluate(config, workdir)
  assert mean_loss(workdir, 80) > 1.1 * before  # as the images are others, and not as the model is worse
  assert exported(workdir)["step"] == 80
  assert "the held-out images have changed; the loss of the exported model on the new ones" in capsys.readouterr().out


def test_the_best_loss_and_the_exported_model_belong_together_on_the_images_of_now(config, tmp_path):
  """Easier images do not make a worse model the best one, and harder ones do not keep the old one forever."""
  model, optimizer = StandIn(CodecConfig(**config.model)), make_optimizer(config)
  good = create_state(config, model, optimizer)
  brighter = lambda offset: good.replace(ema_params=None, params=dict(good.params, g_s=dict(
      good.params["g_s"], bias=good.params["g_s"]["bias"] + offset)))
  good, bad = brighter(0.0), brighter(0.2)
  run_log, stop = loop.RunLog(tmp_path, 0, 5, 0, quiet=True), Stop([], 1)
  rng = np.random.default_rng(0)
  hard = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
  easy = np.full((2, 64, 64, 3), 20, np.uint8) + rng.integers(0, 2, (2, 64, 64, 3), np.uint8)
  before = Validation(config, model, hard, tmp_path, Evaluated())
  before.run(parallel.replicate(good), 6, run_log, stop)
  now = Validation(config, model, easy, tmp_path, before.evaluated)
  assert now.evaluate_exported_model(6, run_log, stop) is None
  rows_of_good, _ = now.evaluate(parallel.replicate(good.params), 6)
  assert now.evaluated.best_loss == pytest.approx(np.mean([row["loss"] for row in rows_of_good]), rel=1e-5)
  now.run(parallel.replicate(bad), 12, run_log, stop)
  loss_of_bad = np.mean([row["loss"] for row in now.evaluate(parallel.replicate(bad.params), 12)[0]])
  assert now.evaluated.best_loss < loss_of_bad < before.evaluated.best_loss  # that of the good model on hard images
  assert exported(tmp_path)["step"] == 6


def test_an_interrupted_run_evaluates_the_exported_model_when_it_goes_on(config, standin, tmp_path, monkeypatch):
  """A run with unchanged images does not evaluate it, nor one that has not exported a model."""
  evaluated = []
  usual = Validation.evaluate_exported_model
  monkeypatch.setattr(Validation, "evaluate_exported_model",
                      lambda self, step, *others: evaluated.append(step) or usual(self, step, *others))
  config.num_steps = 5
  loop.train_and_evaluate(config, tmp_path / "run")  # an evaluation at its end
  config.num_steps = 10
  loop.train_and_evaluate(config, tmp_path / "run")
  assert evaluated == []
  add_images(tmp_path / "photographs", 0, 256)
  config.num_steps = 12
  with monkeypatch.context() as patch:
    stop_at(patch, 11, cut)
    with pytest.raises(BaseException, match="^$"):
      loop.train_and_evaluate(config, tmp_path / "run")
  assert evaluated == [10]
  loop.train_and_evaluate(config, tmp_path / "run")  # no checkpoint was saved since: once more
  loop.train_and_evaluate(config, tmp_path / "run")
  assert evaluated == [10, 10]


def test_a_run_whose_data_folder_moves_up_trains_on_the_same_images(config, standin, tmp_path):
  """The runs agree bit for bit: no held-out image is trained on, and no trained image is held out."""
  config.num_steps = 5
  for name in ("whole", "moved"):
    loop.train_and_evaluate(config, tmp_path / name)
  held_out = preflight.read_held_out(tmp_path / "moved")
  config.num_steps = 10
  loop.train_and_evaluate(config, tmp_path / "whole")
  (tmp_path / "archive").mkdir()
  (tmp_path / "photographs").rename(tmp_path / "archive" / "renamed")
  config.data_dir = str(tmp_path / "archive")
  loop.train_and_evaluate(config, tmp_path / "moved")
  assert {image.digest for image in preflight.read_held_out(tmp_path / "moved")} == {each.digest for each in held_out}
  for name in ("metrics.csv", "eval.csv"):
    columns = ("step", "loss", "bpp", "psnr")
    read = [[[row[column] for column in columns] for row in rows(tmp_path / run / name)] for run in ("whole", "moved")]
    assert read[0] == read[1]


def test_the_record_of_held_out_images_holds_any_name(tmp_path):
  odd_names = "a\u2028b", "a\nb", "a\tb", "a\\nb", os.fsdecode(b"caf\xe9"), "\x85", "\r", ""
  odd = [HeldOut(name, digest) for name in odd_names for digest in ("", f"12-{'0' * 32}")]
  preflight.write_held_out(tmp_path, odd)
  assert preflight.read_held_out(tmp_path) == odd
  (tmp_path / "held_out.txt").write_bytes(b"photos/a b.png\nphotos/caf\xe9\ta.png\n")  # of older programs
  assert preflight.read_held_out(tmp_path) == [HeldOut("photos/a b.png", ""),
                                               HeldOut(os.fsdecode(b"photos/caf\xe9\ta.png"), "")]


def test_a_run_says_when_it_trains_on_what_was_held_out():
  recorded = [HeldOut(f"{name}.png", "") for name in "abd"]
  assert preflight.trained_on_held_out(recorded, ["c.png", "e.png"]) is None
  line = preflight.trained_on_held_out(recorded, ["a.png", "d.png", "f.png"])
  assert line.startswith("training now uses 2 of 3 images that were held out, such as a.png")
