"""A training run of a few steps on twelve small images, and ways to cut it short."""
import csv

import jax
import numpy as np
import pytest
from helpers.linear_stub import StandIn
from PIL import Image

from configs import nano
from mlic_jax.config import CodecConfig
from mlic_jax.training import loop, pmap_programs
from mlic_jax.training import step as step_module
from mlic_jax.training.checkpoints import Checkpoints
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import state_shapes

_programs = {}  # of this process


class PowerCut(BaseException):
  """Ends the process as kill -9 would: nothing catches it."""


@pytest.fixture(name="config")
def small_config(tmp_path):
  """A run of a few steps on twelve images of 72x80; the model is the stand-in."""
  return config_on_images_in(tmp_path)


def config_on_images_in(tmp_path):
  rng = np.random.default_rng(0)
  (tmp_path / "photographs").mkdir()
  for i in range(12):
    pixels = rng.integers(0, 256, (9, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "photographs" / f"f{i:02}.png")
  c = nano.get_config()
  c.data_dir, c.holdout_every, c.crop_size, c.batch_size = str(tmp_path / "photographs"), 4, 64, 4
  c.model = dict(N=4, M=8, num_slices=2, num_rates=2)
  c.lmbdas, c.num_steps, c.learning_rate, c.warmup_steps = (0.0018, 0.0483), 12, 1e-3, 2
  c.schedule, c.final_learning_rate, c.partial_probability = "cosine", 1e-6, 0.0
  c.log_every, c.checkpoint_every, c.eval_every = 4, 5, 6
  c.eval_images, c.eval_crop_size, c.eval_batch_size = 0, 64, 2
  return c


@pytest.fixture(name="standin")
def standin_model(monkeypatch):
  monkeypatch.setattr(loop, "build", StandIn)


@pytest.fixture(name="standin")
def standin_compiled_once(monkeypatch):
  """The stand-in, and programs that all runs of the same config share, as the executables on disk are shared."""
  share_programs(monkeypatch)


def share_programs(monkeypatch):
  """The description of a program is everything that it is traced from (runtime/executable_cache.py), but for a training
  step that a test replaces."""
  monkeypatch.setattr(loop, "build", StandIn)
  usual = step_module.with_executable_cache

  def shared(function, name, description, jit=jax.jit, **options):
    if description is None:
      return usual(function, name, description, jit, **options)
    key = name, description, loop.make_train_step
    if key not in _programs:
      _programs[key] = usual(function, name, description, jit, **options)
    return _programs[key]

  monkeypatch.setattr(step_module, "with_executable_cache", shared)
  monkeypatch.setattr(pmap_programs, "with_executable_cache", shared)


def rows(path):
  with path.open() as file:
    return list(csv.DictReader(file))


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
  checkpoints = Checkpoints(workdir, config.keep_checkpoints)
  restored = checkpoints.restore(_state_shapes(config, model(CodecConfig(**config.model))))
  checkpoints.close()
  assert restored.state.step == config.num_steps
  return restored


def _state_shapes(config, model):
  key = "shapes", pmap_programs.cache_key(config, model)
  if key not in _programs:
    _programs[key] = state_shapes(config, model, make_optimizer(config))
  return _programs[key]
