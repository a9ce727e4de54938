"""Tests of ablations, with a model that trains in seconds."""
import json
import os

import jax
import numpy as np
import pytest
from helpers.small_training import standin_compiled_once  # noqa: F401  a fixture
from PIL import Image

from mlic_jax.__main__ import main
from mlic_jax.training import loop

CONFIG = """
from configs import nano
def get_config():
  c = nano.get_config()
  c.holdout_every, c.crop_size, c.batch_size, c.optimizer = 4, 64, 2, "adam"
  c.model = dict(N=4, M={M}, num_slices=2, num_rates=2)
  c.lmbdas, c.learning_rate, c.warmup_steps, c.flip = (0.0018, {lmbda}), 1e-3, 2, {flip}
  c.log_every, c.eval_images, c.eval_crop_size, c.eval_batch_size = 4, 0, 64, 1
  return c
"""


@pytest.fixture(name="command")
def two_configurations(tmp_path, standin, monkeypatch):
  """Arguments of `ablate` for small.py and other.py on eight images of 72x80; the model is the stand-in.

  The configs differ by their crops, so that they share their programs."""
  monkeypatch.setattr(jax, "clear_caches", lambda: None)  # has the programs of other tests too
  rng = np.random.default_rng(0)
  (tmp_path / "photographs").mkdir()
  for i in range(8):
    pixels = rng.integers(0, 256, (9, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "photographs" / f"{i}.png")
  (tmp_path / "small.py").write_text(CONFIG.format(M=8, lmbda=0.0483, flip=True))
  (tmp_path / "other.py").write_text(CONFIG.format(M=8, lmbda=0.0483, flip=False))
  return ["ablate", "--data", str(tmp_path / "photographs"), "--steps", "4", "--workdir", str(tmp_path / "out"),
          "--configs", str(tmp_path / "small.py"), str(tmp_path / "other.py")]


def test_the_table_holds_the_recorded_evaluations_and_a_finished_run_is_not_trained_again(
    command, tmp_path, capsys, monkeypatch):
  assert main(command) == 0
  printed, out = capsys.readouterr().out, tmp_path / "out"
  written = json.loads((out / "ablation.json").read_text())
  assert written["steps"] == 4 and [row["name"] for row in written["rows"]] == ["small", "other"]
  small, other = written["rows"]
  for row in written["rows"]:
    recorded = json.loads((out / row["name"] / "model" / "config.json").read_text())["training"]
    assert row["rates"] == recorded["eval"] and row["loss"] == pytest.approx(recorded["eval_loss"])
    assert f"{row['bpp']:.4f}" in printed and f"{row['psnr']:.2f}" in printed
  ratios = [a["bpp"] / b["bpp"] for a, b in zip(other["rates"], small["rates"])]
  assert other["relative_bits"] == pytest.approx(100 * (np.mean(ratios) - 1)) and small["relative_bits"] == 0
  lines = (out / "ablation.md").read_text().splitlines()
  assert lines[0].startswith("4 steps each, on photographs") and lines[-1].startswith("| other |")

  monkeypatch.setattr(loop, "train_and_evaluate", None)
  assert main(command) == 0
  assert json.loads((out / "ablation.json").read_text()) == written


def test_names_that_are_not_utf8_are_trained_on_and_written(command, tmp_path, capsys):
  odd = os.fsdecode(b"caf\xe9")
  (tmp_path / "photographs" / "0.png").rename(tmp_path / "photographs" / f"{odd}.png")
  (tmp_path / "photographs").rename(tmp_path / odd)
  (tmp_path / "small.py").rename(tmp_path / f"{odd}.py")
  (tmp_path / "small.py").write_text(CONFIG.format(M=8, lmbda=0.0483, flip=True))
  arguments = [each.replace("photographs", odd) for each in command]
  assert main(arguments) == 0
  assert (tmp_path / "out" / "ablation.md").read_text().startswith("4 steps each, on caf\\udce9;")
  held_out = (tmp_path / "out" / "small" / "held_out.txt").read_bytes().splitlines()
  assert held_out and all(line.startswith(b"caf\xe9/") for line in held_out)
  capsys.readouterr()
  for place, named, run in (("--workdir", odd, "caf\\udce9/small"), ("--configs", f"{odd}.py", "out/caf\\udce9")):
    refused = [*arguments]                               # where Orbax would write checkpoints
    refused[refused.index(place) + 1] = str(tmp_path / named)
    assert_one_line(refused, capsys, f"{run}: is not UTF-8")


def test_runs_of_another_budget_or_on_other_photographs_are_refused(command, tmp_path, capsys):
  (tmp_path / "out" / "other").mkdir(parents=True)
  from mlic_jax.training.checkpoints import write_config
  from mlic_jax.training.config_schema import load_config
  config = load_config(tmp_path / "other.py")
  config.data_dir, config.num_steps = str(tmp_path / "photographs"), 5
  write_config(config, tmp_path / "out" / "other" / "config.json", {})
  assert_one_line(command, capsys, "num_steps=5; wanted 4")
  config.data_dir, config.num_steps = str(tmp_path), 4
  write_config(config, tmp_path / "out" / "other" / "config.json", {})
  assert_one_line(command, capsys, "data_dir=")
  assert not (tmp_path / "out" / "small").exists()  # found before anything was trained


def test_configurations_that_cannot_be_compared_or_trained_are_refused(command, tmp_path, capsys):
  (tmp_path / "other.py").write_text(CONFIG.format(M=16, lmbda=0.05, flip=True))
  assert_one_line(command, capsys, "other.py: lmbdas=[0.0018, 0.05] but [0.0018, 0.0483] in small")
  (tmp_path / "other.py").write_text(CONFIG.format(M=7, lmbda=0.0483, flip=True))
  assert_one_line(command, capsys, "other.py: M=7")
  (tmp_path / "other.py").write_text(CONFIG.format(M=16, lmbda=0.0483, flip=True))
  assert_one_line([*command, str(tmp_path / "small.py")], capsys, "another config is also named small")
  command[2] = str(tmp_path / "nowhere")
  assert_one_line(command, capsys, "nowhere: no such folder", prints=True)


def assert_one_line(command, capsys, message, prints=False):
  assert main(command) == 2
  out, err = capsys.readouterr()
  assert bool(out) == prints and err.count("\n") == 1 and message in err


def finished(folder, num_steps, **figures):
  """Writes a finished run, with a model of these figures at both rates."""
  (folder / "checkpoints" / str(num_steps)).mkdir(parents=True)
  (folder / "model").mkdir()
  training = {"step": num_steps, "eval": [figures, figures]}
  (folder / "model" / "config.json").write_text(json.dumps({"training": training}))


def test_a_row_of_several_seeds_is_their_mean_against_the_first_row_seed_by_seed(command, tmp_path, capsys):
  losses = {"small-seed3": 10.0, "small-seed4": 20.0, "other-seed3": 9.0, "other-seed4": 22.0}
  for run, loss in losses.items():
    finished(tmp_path / "out" / run, 4, loss=loss, bpp=1.0, psnr=30.0)
  assert main([*command, "--seeds", "3", "4"]) == 0
  small, other = json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"]
  assert small["loss"] == 15 and other["loss"] == 15.5 and small["relative_loss"] == 0
  figures = [other[field] for field in ("lowest", "relative_loss", "highest")]
  np.testing.assert_allclose(figures, [-10, 0, 10], atol=1e-9)
  assert [row["loss"] for row in other["seeds"]] == [9, 22]
  assert "| lowest | highest |" in (tmp_path / "out" / "ablation.md").read_text()
  capsys.readouterr()
  assert_one_line([*command, "--seeds", "3", "3"], capsys, "--seeds 3 3; wanted different seeds")


def test_rows_of_equal_time_have_the_steps_that_the_pace_of_earlier_runs_allows(command, tmp_path, capsys):
  timed = ["--equal-time", str(tmp_path / "timed")]
  assert_one_line([*command, *timed], capsys, "small: no log of a run; wanted a workdir with the same rows")
  from mlic_jax.training.checkpoints import write_config
  from mlic_jax.training.config_schema import load_config
  for name, speeds, steps in (("small", (1, 4, 5), 4), ("other", (2, 2), 2)):
    (tmp_path / "timed" / name).mkdir(parents=True)
    write_config(load_config(tmp_path / f"{name}.py"), tmp_path / "timed" / name / "config.json", {})
    (tmp_path / "timed" / name / "metrics.csv").write_text("step,images_per_second\n" + "".join(
        f"{i},{speed}\n" for i, speed in enumerate(speeds)))
    finished(tmp_path / "out" / name, steps, loss=1.0, bpp=1.0, psnr=30.0)
  assert main([*command, *timed]) == 0
  rows = json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"]
  assert [row["num_steps"] for row in rows] == [4, 2]
  text = (tmp_path / "out" / "ablation.md").read_text()
  assert text.startswith("The time of 4 steps of the first row each, on photographs") and "| steps |" in text
