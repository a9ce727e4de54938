"""Tests of configs: train.py, `describe` and `ablate` refuse invalid configs in one line."""
import pytest

from mlic_jax.__main__ import main
from mlic_jax.errors import ConfigError
from mlic_jax.training.config_schema import FIELDS, load_config, model_config

NANO = "from configs import nano\ndef get_config():\n  c = nano.get_config()\n  {}\n  return c\n"
READERS = {
    "train": lambda file, rest, out: main(["train", f"--config={file}", f"--workdir={out}", *rest]),
    "describe": lambda file, rest, out: main(["describe", f"--config={file}", "--height=64", "--width=64", *rest]),
    "ablate": lambda file, rest, out: main(["ablate", f"--data={out.parent}", "--steps=1", f"--workdir={out}", *rest,
                                            "--configs", str(file)]),
}


def refused(reader, file, rest, tmp_path, capsys) -> str:
  """Returns the line that the command prints."""
  assert READERS[reader](file, rest, tmp_path / "out") == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1
  assert not (tmp_path / "out").exists()
  return err


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("lines, message", [
    ("c.model.contexts = ('foo',)", "no context 'foo'"),
    ("c.model.contexts = ('channel', 'channel')", "wanted different names"),
    ("c.model.transforms = 'foo'", "no transform 'foo'"),
    ("c.model.widths = (1, 2, 3, 4)", "wanted two widths"),
    ("c = None + 1", "TypeError"),
    ("c.model = 3", "model"),
    ("c = 5", "wanted a function get_config() that returns a ConfigDict")])
def test_a_file_that_describes_no_codec_is_refused_in_one_line_by_all(tmp_path, capsys, reader, lines, message):
  (tmp_path / "mine.py").write_text(NANO.format(lines))
  assert message in refused(reader, tmp_path / "mine.py", [], tmp_path, capsys)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("override, message", [
    ("--config.model.contexts=('foo',)", "no context 'foo'"),
    ("--config.model.num_slice=3", "unknown config field 'model.num_slice'; the nearest known one is"),
    ("--config.model.N=many", "model.N"),
    ("--config.model.options.rotary=3", "options has rotary=3; wanted True or False"),
    ("--config.model.options.rotory=True", "options has 'rotory', which no part of this codec reads"),
    ("--config.lmbda=0.01", "lmbda is only for single-rate models"),
    ("--confg.seed=1", "unexpected argument '--confg.seed=1'"),
    ("stray", "unexpected argument 'stray'")])
def test_a_bad_change_is_refused_in_one_line_by_all(tmp_path, capsys, reader, override, message):
  assert message in refused(reader, "configs/nano.py", [override], tmp_path, capsys)


@pytest.mark.parametrize("reader", ["train", "ablate"])
@pytest.mark.parametrize("override, message", [
    ("--config.seed=-1", "seed=-1; wanted an integer of at least 0"),
    ("--config.batch_size=0", "batch_size=0; wanted an integer of at least 1"),
    ("--config.downscale_probability=1.5", "downscale_probability=1.5; wanted 0 to 1"),
    ("--config.schedule=linear", "schedule='linear'; wanted one of cosine, wsd, step")])
def test_a_value_that_no_training_takes_is_refused_in_one_line(tmp_path, capsys, reader, override, message):
  assert message in refused(reader, "configs/nano.py", [override], tmp_path, capsys)


def test_every_field_of_a_config_file_is_in_the_one_list_and_can_be_changed():
  config = load_config("configs/nano.py", ["--config.seed=3", "--config.model.N=32", "--config.flip=False"])
  assert set(config) <= set(FIELDS)
  assert (config.seed, config.model.N, config.flip) == (3, 32, False)


def test_a_field_that_a_file_does_not_name_is_taken_where_something_reads_it(tmp_path):
  model = model_config(load_config("mlic_plus_plus:mse:3", ["--config.model.options.rotary", "True"]))
  assert dict(model.options) == {"rotary": True}
  assert model_config(load_config("nano", ["--config.model.distribution=laplace"])).distribution == "laplace"
  with pytest.raises(ConfigError, match="no distribution 'laplac' in mlic_jax/model/distributions/"):
    model_config(load_config("nano", ["--config.model.distribution", "laplac"]))
  adam = load_config("configs/optimizers/adam.py")
  assert "muon_learning_rate" not in adam
  changes = ["--config.muon_learning_rate=1e-3", "--config.optimizer=muon"]
  assert load_config("configs/optimizers/adam.py", changes).muon_learning_rate == 1e-3
  (tmp_path / "locked.py").write_text(NANO.format("c.lock()"))
  assert model_config(load_config(tmp_path / "locked.py", ["--config.model.options.rotary=True"])).options
  (tmp_path / "three.py").write_text(NANO.format("del c.model; c.model = 3"))
  with pytest.raises(ConfigError, match="unknown config field 'model.options.rotary'"):
    load_config(tmp_path / "three.py", ["--config.model.options.rotary=True"])
  with pytest.raises(ConfigError, match=r"^muon_learning_rate is only for optimizer='muon';"):
    load_config("configs/optimizers/adam.py", changes[:1])
