"""Tests of custom contexts, transforms and distributions in a folder outside the package."""
import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY, random_variables
from PIL import Image

from configs import nano
from mlic_jax.__main__ import main
from mlic_jax.coding.cdf_tables import row_scales
from mlic_jax.coding.checkpoint_io import CheckpointError, load_model, save_model
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.model.distributions import make_distribution
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.model.registry import custom_modules
from mlic_jax.training import loop, warm_start
from mlic_jax.training.config_schema import model_config

CONTEXT = """
from flax import linen as nn
from mlic_jax.model.layers import Conv
from mlic_jax.model.registry import options

OPTIONS = {"hyper_features": 4}

class Context(nn.Module):
  config: object
  needs = ()

  @property
  def features(self):
    import own_parts.from_hyper as here
    return options(self.config, here)["hyper_features"]

  @nn.compact
  def __call__(self, inputs):
    return Conv(self.features, 1, name="conv")(inputs.hyper)
"""
TRANSFORMS = """
import jax
from flax import linen as nn
from mlic_jax.model.layers import Conv, pixel_shuffle

STRIDE = 8

def activation_floats_per_pixel(config):
  return 3.0

class Analysis(nn.Module):
  config: object
  remat: bool = False

  @nn.compact
  def __call__(self, x):
    b, h, w, _ = x.shape
    patches = x.reshape(b, h // 8, 8, w // 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 8, w // 8, -1)
    return Conv(self.config.M, 1, name="out")(patches)

class Synthesis(nn.Module):
  config: object
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat):
    return pixel_shuffle(Conv(3 * 8**2, 1, init_scale=0.2, init_bias=0.5, name="out")(y_hat), 8)
"""
NOTES = (Path(__file__).parents[2] / "docs" / "research.md").read_text()
DISTRIBUTION, = (code for code in re.findall(r"```python\n(.*?)```", NOTES, re.DOTALL) if "hyperbolic secant" in code)
FIELDS = dict(TINY.to_dict(), transforms="own_parts.patches", contexts=["channel", "own_parts.from_hyper"],
              options={"hyper_features": 6}, distribution="own_parts.secant",
              num_rates=2, num_slices=1, M=16, entropy_widths=[8], channel_widths=[8], lrp_widths=[])


@pytest.fixture(name="folder")
def folder_with_own_parts(tmp_path, monkeypatch):
  """The current directory, with a package of parts in it."""
  (tmp_path / "own_parts").mkdir()
  (tmp_path / "own_parts" / "__init__.py").touch()
  (tmp_path / "own_parts" / "from_hyper.py").write_text(CONTEXT)
  (tmp_path / "own_parts" / "patches.py").write_text(TRANSFORMS)
  (tmp_path / "own_parts" / "secant.py").write_text(DISTRIBUTION)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  yield tmp_path
  for name in [name for name in sys.modules if name.startswith("own_parts")]:
    del sys.modules[name]


def test_custom_modules_are_trained_exported_coded_and_described(folder, capsys):
  rng = np.random.default_rng(0)
  (folder / "photographs").mkdir()
  for i in range(6):
    pixels = rng.integers(0, 256, (9, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(folder / "photographs" / f"{i}.png")
  c = nano.get_config()
  c.model, c.lmbdas, c.data_dir, c.holdout_every = FIELDS, (0.0018, 0.0483), "photographs", 3
  c.crop_size = c.eval_crop_size = 32                    # the stride of y is 8, that of z four times as much
  c.optimizer = "adam"                                   # which compiles in half the time
  c.batch_size, c.eval_batch_size, c.num_steps, c.log_every, c.eval_images, c.warmup_steps = 2, 2, 2, 2, 0, 1
  loop.train_and_evaluate(c, folder / "run")

  settings = json.loads((folder / "run" / "model" / "config.json").read_text())
  assert settings["model"]["transforms"] == "own_parts.patches"
  assert settings["model"]["contexts"] == ["channel", "own_parts.from_hyper"]
  assert settings["model"]["distribution"] == "own_parts.secant"
  from mlic_jax import Codec
  codec = Codec.load(folder / "run", allow_custom_modules=True)
  photograph = np.asarray(Image.open(folder / "photographs" / "0.png"))
  blob, predicted = codec.encode_with_reconstruction(photograph[:70, :50], quality=1.5)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  row = np.split(codec.coder.table.lookup, np.flatnonzero(codec.coder.table.lookup == 2**16) + 1)[40]
  secant = make_distribution(codec.config)
  zero = secant.cdf(0.5, row_scales()[40]) - secant.cdf(-0.5, row_scales()[40])
  assert np.diff(row[1:])[-codec.coder.table.offset[40]] / 2**16 == pytest.approx(zero, rel=5e-3)

  (folder / "own.py").write_text("import ml_collections\n"
                                 f"get_config = lambda: ml_collections.ConfigDict(dict(model={FIELDS!r}))\n")
  assert main(["describe", "--config", "own.py", "--height", "64", "--width", "64"]) == 0
  out = capsys.readouterr().out
  assert "own_parts.from_hyper" in out and "g_a" in out


def test_a_context_that_needs_hyper_features_only_is_active_in_both_passes_of_every_slice(folder):
  config = dataclasses.replace(TINY, transforms="own_parts.patches", contexts=("own_parts.from_hyper",), num_rates=0)
  variables = random_variables(config)
  rng = np.random.default_rng(0)
  y, hyper = (rng.normal(size=(1, 4, 4, n)).astype(np.float32) for n in (config.M, 2 * config.M))

  def priors(kernel):
    params = jax.tree.map(lambda p: p, variables["params"])
    (context,) = [name for name in params["slices"]["steps"] if name.startswith("contexts_")]
    params["slices"]["steps"][context]["conv"]["kernel"] = kernel
    coded = build(config).apply({"params": params}, hyper, y, method=lambda m, *args: m.slices.scan(*args))
    return np.asarray(coded.mean)

  (context,) = [name for name in variables["params"]["slices"]["steps"] if name.startswith("contexts_")]
  kernel = variables["params"]["slices"]["steps"][context]["conv"]["kernel"]
  moved = np.abs(priors(kernel) - priors(-kernel))
  assert (moved.max(-1) > 0).all()                       # on anchors and non-anchors
  assert (moved[..., :config.slice_channels].max(-1) > 0).all()


def test_the_stride_of_the_transforms_decides_what_sizes_must_be_multiples_of(folder):
  assert side_multiple(CodecConfig.from_dict(FIELDS)) == 32 and side_multiple(TINY) == 64


@pytest.mark.parametrize("changes, message", [
    (dict(contexts=["own_parts.missing"]), "context 'own_parts.missing': no such module; looked for it in "),
    (dict(transforms="nowhere.at_all"), "transform 'nowhere.at_all': no such module"),
    (dict(transforms="own_parts.from_hyper"), "has no STRIDE; wanted STRIDE, Analysis"),
    (dict(options={"hyper_feature": 6}), "options has 'hyper_feature', which no part of this codec reads"),
    (dict(distribution="own_parts.from_hyper"), "has no Distribution; wanted Distribution"),
    (dict(transforms="cheng2021"), "no transform 'cheng2021' in mlic_jax/model/transforms/; the nearest is")])
def test_an_unknown_module_is_refused_in_one_line(folder, changes, message):
  c = nano.get_config()
  c.model = FIELDS | changes
  with pytest.raises(ConfigError, match=message) as error:
    model_config(c)
  assert "\n" not in str(error.value)


def test_missing_custom_modules_of_a_model_directory_are_reported_in_one_line(folder, monkeypatch):
  config = CodecConfig.from_dict(FIELDS)
  save_model(folder / "model", config, random_variables(config))
  (folder / "own_parts" / "patches.py").unlink()
  for name in [name for name in sys.modules if name.startswith("own_parts")]:
    del sys.modules[name]
  from mlic_jax import Codec
  with pytest.raises(ValueError, match="model: transform 'own_parts.patches': no such module") as error:
    Codec.load(folder / "model", allow_custom_modules=True)
  assert "\n" not in str(error.value)


@pytest.fixture(name="downloaded")
def model_with_a_payload(folder):
  """A model directory whose config names a module of it, which writes a file when it is imported."""
  config = CodecConfig.from_dict(FIELDS)
  save_model(folder / "model", config, random_variables(config))
  (folder / "model" / "payload.py").write_text("open('it_ran', 'w').close()\n" + CONTEXT)
  settings = json.loads((folder / "model" / "config.json").read_text())
  settings["model"]["contexts"][1] = "model.payload"
  (folder / "model" / "config.json").write_text(json.dumps(settings))
  Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "a.png")
  for name in [name for name in sys.modules if name.startswith("own_parts")]:
    del sys.modules[name]
  return folder / "model"


COMMANDS = {
    "encode": "encode a.png a.mlic --ckpt model", "decode": "decode FILE out.png --ckpt model",
    "eval": "eval --ckpt model --data . --out out", "round-weights": "round-weights model out",
    "calibrate": "calibrate model --data . --out out",
    "convert": "convert model out.npz --to compressai"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_downloaded_model_runs_no_code(downloaded, folder, command, capsys):
  file = Path(__file__).parents[1] / "fixtures" / "written_before" / "trained.mlic"
  assert main(COMMANDS[command].replace("FILE", str(file)).split()) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and "--allow-custom-modules" in err and "Python module '" in err
  assert not (folder / "it_ran").exists() and not {"model.payload", "own_parts.patches"} & set(sys.modules)


def test_a_downloaded_model_runs_no_code_in_python_either(downloaded, folder):
  from mlic_jax import Codec
  for load in (load_model, Codec.load):
    for allowed in (False, (), ("own_parts.patches",)):
      with pytest.raises(CheckpointError, match="names the Python module '.*', and loading would run its code"):
        load(downloaded, allow_custom_modules=allowed)
  assert not (folder / "it_ran").exists()


def test_custom_modules_run_where_they_are_allowed(folder):
  config = CodecConfig.from_dict(FIELDS)
  save_model(folder / "model", config, random_variables(config))
  assert main(["round-weights", "model", "out"]) == 2
  assert main(["round-weights", "model", "out", "--allow-custom-modules"]) == 0
  assert load_model(folder / "out", custom_modules(config)).config == config


def test_a_training_takes_the_modules_of_its_own_config_and_no_others_from_a_teacher(downloaded, folder):
  c = nano.get_config()
  c.teacher = "model"
  with pytest.raises(CheckpointError, match="names the Python module 'model.payload'"):
    warm_start.load_teacher(c, CodecConfig.from_dict(FIELDS))
  settings = json.loads((downloaded / "config.json").read_text())
  settings["model"]["contexts"][1] = "own_parts.from_hyper"
  (downloaded / "config.json").write_text(json.dumps(settings))
  assert warm_start.load_teacher(c, CodecConfig.from_dict(FIELDS))[0] is not None
