"""Tests of entropy models trained on the latents of a frozen codec, by `ablate --latents`."""
import csv
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from conftest import TINY, random_variables
from ml_collections import ConfigDict
from PIL import Image

from mlic_jax.__main__ import main
from mlic_jax.coding.checkpoint_io import load_model, save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.config import CodecConfig
from mlic_jax.model import entropy_model
from mlic_jax.training import latent_training, warm_start
from mlic_jax.training.config_schema import load_config

SMALL = CodecConfig.from_dict(dict(TINY.to_dict(), transforms="unshuffled", widths=(16, 16), hyper_widths=(16, 16),
                                   num_slices=1, contexts=(), entropy_widths=(16,), lrp_widths=(), num_rates=2))
CONFIG = """
from configs import nano
def get_config():
  c = nano.get_config()
  c.model = {model!r}
  c.optimizer, c.learning_rate, c.warmup_steps, c.schedule = "adam", 3e-3, 2, "wsd"
  c.holdout_every, c.crop_size, c.batch_size, c.lmbdas = 4, 64, 4, (0.0018, 0.0483)
  c.log_every, c.eval_images, c.eval_crop_size, c.eval_batch_size = 20, 0, 64, 1
  return c
"""


@pytest.fixture(scope="module", name="analyzed")
def latents_of_the_checkpoint():
  """A list for the latents of the ablations of this file, which are the same and computed once."""
  return []


@pytest.fixture(name="analyzed_once")
def computed_once(monkeypatch, analyzed):
  usual = latent_training.cache_latents

  def cache_latents(model, config):
    analyzed.append(analyzed[0] if analyzed else usual(model, config))
    return analyzed[0]
  monkeypatch.setattr(latent_training, "cache_latents", cache_latents)
  return analyzed


@pytest.fixture(name="command")
def two_configurations(tmp_path, monkeypatch):
  """Arguments of `ablate` for a hyperprior and a channel context, on eight images, with the latents of `ckpt`."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(latent_training, "NUM_CROPS", 16)
  monkeypatch.setattr(latent_training, "ANALYZED", 2)  # as many as are held out, so that one program analyzes both
  monkeypatch.setattr(jax, "clear_caches", lambda: None)  # what a run frees, the next would compile again
  rng = np.random.default_rng(0)
  (tmp_path / "images").mkdir()
  for i in range(8):
    pixels = rng.integers(0, 256, (9, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
  save_model(tmp_path / "ckpt", SMALL, random_variables(SMALL))
  channel = dict(num_slices=2, contexts=["channel"], channel_widths=[16])
  for name, changes in dict(hyperprior={}, channel=channel).items():
    (tmp_path / f"{name}.py").write_text(CONFIG.format(model=SMALL.to_dict() | changes))
  return ["ablate", "--data", "images", "--workdir", "out", "--latents", "ckpt",
          "--configs", "hyperprior.py", "channel.py"]


def test_rows_are_the_bits_of_trained_entropy_models_and_finished_runs_are_read(
    command, analyzed_once, tmp_path, capsys, monkeypatch):
  assert main([*command, "--steps", "40"]) == 0
  out = capsys.readouterr().out
  written = json.loads((tmp_path / "out" / "ablation.json").read_text())
  assert [row["name"] for row in written["rows"]] == ["hyperprior", "channel"]
  for row in written["rows"]:
    with (tmp_path / "out" / row["name"] / "metrics.csv").open() as file:
      untrained = float(next(csv.DictReader(file))["bpp_y"])  # of the first step
    assert np.mean([rate["bpp_y"] for rate in row["rates"]]) < 0.9 * untrained
    assert row["psnr"] is None and row["bd_rate"] is None and row["loss"] == row["bpp"]
    assert f"{row['bpp']:.4f}" in out and [rate["quality"] for rate in row["rates"]] == [1, 2]
    assert all(rate["bpp"] == pytest.approx(rate["bpp_y"] + rate["bpp_z"]) for rate in row["rates"])
  assert "PSNR" not in (tmp_path / "out" / "ablation.md").read_text().splitlines()[2]
  with monkeypatch.context() as patch:
    patch.setattr(latent_training, "train", None)
    assert main([*command, "--steps", "40"]) == 0
  assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == written

  timed = [each.replace("out", "timed") for each in command]
  assert main([*timed, "--steps", "20", "--equal-time", "out", "--seeds", "0"]) == 2
  assert "no log of a run" in capsys.readouterr().err
  steps = []

  def train(config, codec, cache, workdir):
    steps.append(config.num_steps)
    workdir.mkdir(parents=True)
    results = json.loads((tmp_path / "out" / workdir.name / latent_training.RESULTS).read_text())
    (workdir / latent_training.RESULTS).write_text(json.dumps(results | dict(step=config.num_steps)))

  monkeypatch.setattr(latent_training, "train", train)
  assert main([*timed, "--steps", "20", "--equal-time", "out"]) == 0
  first, second = json.loads((tmp_path / "timed" / "ablation.json").read_text())["rows"]
  assert steps == [first["num_steps"], second["num_steps"]] and steps[0] == 20 and steps[1] > 0


def test_a_config_with_init_from_starts_with_the_parameters_that_fit(command, analyzed_once, tmp_path):
  """A mixture has more outputs than the Gaussian of the checkpoint; its scales and means are the same at first."""
  model = load_model("ckpt")
  slices = model.variables["params"]["slices"]
  mixture = dataclasses.replace(SMALL, distribution="gaussian_mixture", options=dict(mixture_components=2))
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(functools.partial(entropy_model.init, mixture), jax.random.key(0))
  fresh = {"slices": jax.tree.map(lambda each: jax.device_put(rng.normal(size=each.shape).astype(np.float32)), shapes)}
  params = warm_start.copy_matching(fresh, model.variables["params"])["slices"]["steps"]
  last, wide = slices["steps"]["entropy_anchor"]["conv1"]["kernel"], params["entropy_anchor"]["conv1"]["kernel"]
  assert wide.shape[-1] * 2 == last.shape[-1] * 5
  np.testing.assert_array_equal(wide[..., :last.shape[-1]], last)
  np.testing.assert_array_equal(wide[..., last.shape[-1]:],
                                fresh["slices"]["steps"]["entropy_anchor"]["conv1"]["kernel"][..., last.shape[-1]:])
  np.testing.assert_array_equal(params["entropy_anchor"]["conv0"]["kernel"],
                                slices["steps"]["entropy_anchor"]["conv0"]["kernel"])

  assert main([*command[:-1], "--steps", "1", "--config.init_from=ckpt", "--config.learning_rate=1e-9"]) == 0
  (row,) = json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"]
  config = load_config("hyperprior.py", ["--config.data_dir=images"])
  wanted = latent_training._evaluate(config, SMALL, analyzed_once[0], slices)
  assert [rate["bpp"] for rate in row["rates"]] == pytest.approx([rate["bpp"] for rate in wanted], rel=1e-3)


def test_the_bits_of_the_cached_latents_are_those_of_the_codec(command, tmp_path):
  """With the entropy model of the checkpoint itself, the bits of the held-out crops are the estimate of the codec."""
  codec = Codec.load("ckpt")
  x = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
  model = load_model("ckpt")
  latents = latent_training._analyze(model, iter([x]))
  gains = np.exp(model.variables["params"]["log_gain"])
  cache = latent_training.Cache(model, gains, latents, latents)
  config = ConfigDict(dict(lmbdas=(1.0, 2.0)))
  rates = latent_training._evaluate(config, SMALL, cache, model.variables["params"]["slices"])
  for quality, rate in enumerate(rates, 1):
    bits = [codec.estimate(image, quality)[0] for image in x]
    assert rate["bpp"] == pytest.approx(np.mean(bits) / 64**2, rel=1e-4)


def test_an_entropy_model_for_other_latents_is_refused_before_the_work(command, tmp_path, capsys):
  (tmp_path / "channel.py").write_text(CONFIG.format(model=SMALL.to_dict() | dict(M=64)))
  assert main([*command, "--steps", "1"]) == 2
  assert "M=64; the latents of ckpt have M=32" in capsys.readouterr().err and not (tmp_path / "out").exists()
