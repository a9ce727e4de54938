"""A training run of a few steps on twelve small images, and ways to cut it short."""
import csv

import numpy as np
import pytest
from helpers.linear_stub import StandIn
from helpers.shared_programs import with_programs_of_this_process
from PIL import Image

from configs import nano
from mlic_jax.coding import cdf_tables
from mlic_jax.config import CodecConfig
from mlic_jax.model.distributions import gaussian
from mlic_jax.training import loop, pmap_programs
from mlic_jax.training import step as step_module
from mlic_jax.training.checkpoints import Checkpoints
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import create_state, state_shapes

_found = {}  # what is the same in all runs of this process
# The fields that a program is not traced from, in addition to the fields of paths.
FIELDS_OF_THE_LOOP = ("seed", "log_every", "checkpoint_every", "eval_every", "eval_images", "eval_crop_size",
                      "eval_batch_size", "eval_pictures", "holdout_every", "keep_checkpoints", "crop_schedule",
                      "downscale_probability", "flip")


class PowerCut(BaseException):
  """Ends the process as kill -9 would: nothing catches it."""


@pytest.fixture(name="config")
def small_config(tmp_path):
  """A run of a few steps on twelve images of 72x80; the model is the stand-in."""
  return config_on_images_in(tmp_path)


@pytest.fixture(scope="module", name="whole")
def uninterrupted_run(tmp_path_factory):
  """The workdir of a run of small_config, and what was restored from its last checkpoint; tests read them."""
  folder = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    share_programs(patch)
    config = config_on_images_in(folder)
    loop.train_and_evaluate(config, folder / "run")
    return folder / "run", final_state(config, folder / "run")


def config_on_images_in(tmp_path):
  rng = np.random.default_rng(0)
  (tmp_path / "photographs").mkdir()
  for i in range(12):
    pixels = rng.integers(0, 256, (9, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "photographs" / f"f{i:02}.png")
  c = nano.get_config()
  c.data_dir, c.holdout_every, c.crop_size, c.batch_size = str(tmp_path / "photographs"), 4, 64, 2
  c.model = dict(N=4, M=8, num_slices=2, num_rates=2)
  c.lmbdas, c.num_steps, c.learning_rate, c.warmup_steps = (0.0018, 0.0483), 12, 1e-3, 2
  c.optimizer = "adam"  # as Muon, which is for convolutions, has no parameters in the stand-in
  c.log_every, c.checkpoint_every, c.eval_every = 4, 5, 6
  c.eval_images, c.eval_crop_size, c.eval_batch_size, c.eval_pictures = 0, 64, 2, 0
  return c


@pytest.fixture(name="standin")
def standin_model(monkeypatch):
  monkeypatch.setattr(loop, "build", StandIn)


@pytest.fixture(name="standin")
def standin_compiled_once(monkeypatch):
  """The stand-in, and programs that all runs of the same config share, as the executables on disk are shared."""
  share_programs(monkeypatch)


_table = cdf_tables.distribution_table


def _table_of_gaussians(distribution, scales, shape=0):
  assert type(distribution) is gaussian.Distribution  # which has no settings
  key = "table", scales.tobytes(), shape
  if key not in _found:
    _found[key] = _table(distribution, scales, shape)
  return _found[key]


def share_programs(monkeypatch):
  """Shares programs between runs whose configs differ only by what the programs are not traced from."""
  usual_key = pmap_programs.cache_key

  def cache_key(config, model, teacher=None):
    config = config.copy_and_resolve_references()
    if config.schedule == "wsd" and not config.decay_start:  # the learning rate does not depend on the last step
      config.num_steps = 0
    return usual_key(config, model, teacher)

  def create_state_once(config, model, optimizer, key=None):
    return create_state(config, model, optimizer,
                        key and repr((config.seed, config.optimizer, config.ema_decay > 0, model)))

  monkeypatch.setattr(loop, "build", StandIn)
  monkeypatch.setattr(loop, "create_state", create_state_once)
  monkeypatch.setattr(cdf_tables, "distribution_table", _table_of_gaussians)  # which all exported models have
  monkeypatch.setattr(pmap_programs, "cache_key", cache_key)
  monkeypatch.setattr(pmap_programs, "LOCAL_FIELDS", (*pmap_programs.LOCAL_FIELDS, *FIELDS_OF_THE_LOOP))
  for module in step_module, pmap_programs:
    monkeypatch.setattr(module, "with_executable_cache", with_programs_of_this_process)


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


def initial_state(config):
  """The state that a run of the stand-in begins with."""
  model = StandIn(CodecConfig(**config.model))
  return loop.create_state(config, model, make_optimizer(config), pmap_programs.cache_key(config, model))


def training_program(config):
  """The training step of a run of the stand-in: (state, batch, teacher_variables, flags) -> (state, metrics, flags)."""
  model = StandIn(CodecConfig(**config.model))
  own = pmap_programs.has_own_programs()
  train_step = loop.make_train_step(config, model, make_optimizer(config), None, "cpu", own)
  return pmap_programs.training(train_step, key=pmap_programs.cache_key(config, model), own_programs=own)


def final_state(config, workdir, model=StandIn):
  checkpoints = Checkpoints(workdir, config.keep_checkpoints)
  restored = checkpoints.restore(_state_shapes(config, model(CodecConfig(**config.model))))
  checkpoints.close()
  assert restored.state.step == config.num_steps
  return restored


def _state_shapes(config, model):
  key = "shapes", pmap_programs.cache_key(config, model)
  if key not in _found:
    _found[key] = state_shapes(config, model, make_optimizer(config))
  return _found[key]
