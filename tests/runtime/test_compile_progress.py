"""Tests of the messages before a compilation."""
import numpy as np
import pytest
from helpers.light_codec import LIGHT, light_model
from helpers.linear_stub import StandIn
from helpers.small_training import small_config, standin_model  # noqa: F401 (fixtures)

from mlic_jax.__main__ import main
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.config import CodecConfig
from mlic_jax.data.image_io import save_image
from mlic_jax.runtime import compile_progress
from mlic_jax.training import loop, parallel
from mlic_jax.training.checkpoints import Evaluated
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import create_state, make_train_step
from mlic_jax.training.validation import Validation


@pytest.fixture(autouse=True)
def nothing_is_known(tmp_path, monkeypatch):
  monkeypatch.setenv("MLIC_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(name="wait")
def waiting_on_a_clock(monkeypatch):
  """Waits for `seconds`, and returns the messages."""
  clock = [0.0]
  monkeypatch.setattr(compile_progress.time, "monotonic", lambda: clock[0])

  def wait(seconds, what="it", of=None):
    said = []
    with compile_progress.compiling(what, of, said.append, "minutes"):
      before = list(said)  # it is said before the wait, not after it
      clock[0] += seconds
    assert said == before
    return said
  return wait


def test_the_first_time_it_is_an_expectation_and_then_what_it_took_before(wait):
  assert wait(118) == ["compiling it: minutes the first time"]
  assert wait(29.4) == ["compiling it: 118 s the first time, less if it is on disk now"]  # so it is, as a rule
  assert wait(7, "another") == ["compiling another: minutes the first time"]
  assert wait(7, of={"crop": 64}) == ["compiling it: minutes the first time"]
  assert wait(1) == ["compiling it: 29 s the last time"]
  assert wait(1) == []                                   # no message for a short compilation


def test_a_file_of_times_that_is_none_or_cannot_be_written_costs_the_figure_alone(wait, tmp_path, monkeypatch):
  for content in ("no JSON", "[1]", '{"a": "b"}'):
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / compile_progress.NAME).write_text(content)
    assert wait(9) == ["compiling it: minutes the first time"]
    assert wait(9) == ["compiling it: 9 s the first time, less if it is on disk now"]
  monkeypatch.setenv("MLIC_JAX_CACHE", "")
  assert wait(9) == wait(9) == ["compiling it: minutes the first time"]


def test_the_file_of_times_does_not_grow_for_ever(wait, monkeypatch):
  monkeypatch.setattr(compile_progress, "ENTRIES", 2)
  for what in ("a", "b", "c"):
    wait(9, what)
  assert wait(9, "c") == ["compiling c: 9 s the first time, less if it is on disk now"]
  assert wait(9, "a") == ["compiling a: minutes the first time"]


def test_a_training_says_that_it_compiles_and_compiles_its_step_once(config, standin, tmp_path, monkeypatch, capsys):
  traced = []

  def make_counted_step(*args):
    step = make_train_step(*args)
    return lambda *args: (traced.append(1), step(*args))[1]

  monkeypatch.setattr(loop, "make_train_step", make_counted_step)
  loop.train_and_evaluate(config, tmp_path / "run")
  printed = capsys.readouterr().out
  wanted = ["compiling the training step: some minutes", "compiling the evaluation: up to a minute", "step 12/12"]
  places = [printed.index(each) for each in wanted]
  assert places == sorted(places) and len(traced) == 1


def test_encoding_reports_compilation_before_the_first_image_alone(photograph, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(Codec, "has_compiled", lambda *_: False)  # whatever ran before
  save_model(tmp_path / "light", LIGHT, light_model().variables)
  (tmp_path / "pictures").mkdir()
  for name in ("a", "b"):
    save_image(tmp_path / "pictures" / f"{name}.png", np.ascontiguousarray(photograph[:50, :60]))
  arguments = ["encode", tmp_path / "pictures", "--ckpt", tmp_path / "light", "--allow-custom-modules",
               "--out-dir", tmp_path / "out"]
  assert main([*map(str, arguments)]) == 0
  assert capsys.readouterr().err.splitlines() == [
      "compiling for 60x50 pixels: some seconds to half a minute on a CPU the first time"]


def test_the_pictures_of_the_log_are_those_of_the_evaluation(config, tmp_path):
  config.eval_pictures, config.eval_batch_size = 2, 1
  model, optimizer = StandIn(CodecConfig(**config.model)), make_optimizer(config)
  held_out = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
  params = create_state(config, model, optimizer).params
  validation = Validation(config, model, held_out, tmp_path, Evaluated())
  validation.evaluate(parallel.replicate(params), 1)
  originals, reconstructions = validation.images()
  np.testing.assert_array_equal(originals, held_out[:2])
  assert list(reconstructions) == [1, 2]
  for quality, pictures in reconstructions.items():
    x_hat = model.apply({"params": params}, held_out[:2] / np.float32(255), quality).x_hat
    wanted = np.round(np.clip(x_hat, 0, 1) * 255)
    assert pictures.dtype == np.uint8 and np.abs(pictures - wanted).max() <= 1  # another order of sums
