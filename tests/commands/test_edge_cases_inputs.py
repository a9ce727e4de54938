"""Tests of unusual inputs: weights of other shapes and types, damaged datasets and runs, names, locales."""
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest
from helpers import golden_fill

import mlic_jax
from mlic_jax.__main__ import main
from mlic_jax.data import sources
from mlic_jax.data.image_io import ImageError, encode_lossless
from mlic_jax.errors import ConfigError
from mlic_jax.evaluation import ablation
from mlic_jax.interop.reference_weights import WeightsError, from_state_dict
from mlic_jax.training.checkpoints import check_config

# --- weights -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def release():
  """Returns a state dict of MLIC++, small, by formula."""
  manifest = Path(__file__).parents[1] / "fixtures" / "golden" / "manifest_A.json"
  return golden_fill.fill(json.loads(manifest.read_text("utf-8")))


@pytest.mark.parametrize("name, shape, message", [
    ("g_a.analysis_transform.6.weight", (3,), "the shapes are not those of an MLIC model"),
    ("h_a.reduction.0.weight", (3, 3), "h_a.reduction.0.weight has the shape (3, 3); wanted (32, 96, 3, 3)"),
    ("local_context.0.relative_position_table", (7, 2), "the shapes are not those of an MLIC model (got window_size=2"),
    ("entropy_bottleneck.quantiles", (5,), "entropy_bottleneck.quantiles has the shape (5,); wanted (32, 1, 3)"),
    ("h_a.reduction.0.bias", (), "h_a.reduction.0.bias has the shape (); wanted (32,)"),
    ("g_s.synthesis_transform.7.0.bias", (1,), "g_s.synthesis_transform.7.0.bias has the shape (1,)"),
    ("lrp_anchor.1.lrp_transform.0.weight", (1, 1, 1, 1), "lrp_anchor.1.lrp_transform.0.weight has the shape (1, 1,"),
])
def test_weights_of_other_shapes_are_refused_in_one_line_and_never_stretched(name, shape, message, release):
  with pytest.raises(WeightsError) as error:
    from_state_dict({**release, name: np.zeros(shape, np.float32)})
  assert message in str(error.value) and "\n" not in str(error.value)


# --- datasets ------------------------------------------------------------------------

@pytest.fixture
def builder(monkeypatch):
  """Returns a stand-in for a prepared dataset of TFRecord files, whose split "train" has these instructions."""
  def prepared(*instructions):
    split = SimpleNamespace(file_instructions=list(instructions))
    tfds = SimpleNamespace(features=SimpleNamespace(Image=SimpleNamespace))
    info = SimpleNamespace(splits={"train": split, "train[:0]": split}, features={"image": SimpleNamespace()})
    formats = SimpleNamespace(value="tfrecord")
    info.available_file_formats = lambda: [formats]
    monkeypatch.setattr(sources, "_prepared", lambda *_: (SimpleNamespace(info=info, data_dir="/data"), tfds))
  return prepared


def test_a_part_of_a_split_that_is_empty_is_refused(builder):
  builder()
  with pytest.raises(ImageError, match=r"tfds:x:train\[:0\]: holds no image"):
    sources.open_tfds("tfds:x:train[:0]", "")


@pytest.mark.parametrize("length", [100, 2**62, 2**63, 2**64 - 1])
def test_a_damaged_file_of_records_is_named(length, builder, tmp_path):
  path = tmp_path / "x.tfrecord-00000-of-00001"
  path.write_bytes(struct.pack("<Q4x", 5) + b"hello...." + struct.pack("<Q4x", length) + b"and no more")
  builder(SimpleNamespace(filename=path, skip=0, take=9))
  with pytest.raises(ImageError, match="x.tfrecord-00000-of-00001: damaged: record 1 ends behind the end"):
    sources.open_tfds("tfds:x", "")


def test_whatever_tfds_says_of_a_dataset_is_one_line(monkeypatch):
  class NotFound(Exception):
    pass

  def builder(*_, **__):
    raise AssertionError("Dataset mnist cannot be loaded at version 9.9.9,\nonly: 3.0.1.")

  tfds = SimpleNamespace(builder=builder, core=SimpleNamespace(DatasetNotFoundError=NotFound))
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", tfds)
  with pytest.raises(ImageError, match="tfds:mnist:9.9.9: Dataset .* at version 9.9.9, only: 3.0.1"):
    sources.open_tfds("tfds:mnist:9.9.9", "")


# --- runs and tables -----------------------------------------------------------------

@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"\xff", b""])
def test_a_damaged_configuration_of_a_run_is_one_line_that_names_it(content, tmp_path):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(ConfigError, match="config.json: (cannot be read|holds)") as error:
    check_config(ml_collections.ConfigDict({"model": {}}), tmp_path / "config.json")
  assert "\n" not in str(error.value)


def test_a_model_of_no_training_is_no_row_of_an_ablation(tmp_path):
  for training in None, {}, {"step": 1}:
    (tmp_path / "config.json").write_text(json.dumps({"training": training}))
    with pytest.raises(ConfigError, match="the model has no evaluation results"):
      ablation._results(tmp_path)


def test_a_table_of_an_ablation_holds_any_name():
  row = dict(name="a|b", bpp=1.0, psnr=30.0, loss=1.0, relative_bits=0.0, bd_rate=None, relative_loss=0.0)
  lines = ablation.markdown([row], 5, "data").splitlines()
  assert len({len(re.findall(r"\|", line)) for line in lines[2:]}) == 1
  ablation.markdown([row], 5, "data").encode()


def test_describe_says_any_name_as_it_is_and_refuses_sides_that_no_file_can_have(capsys):
  assert main(["describe", "--config", "configs/[red]none.py"]) == 2
  assert "configs/[red]none.py" in capsys.readouterr().err
  for side in "4294967296", str(10**30):
    assert main(["describe", "--config", "configs/nano.py", "--height", side]) == 2
    assert "below 4294967296" in capsys.readouterr().err


# --- locales -------------------------------------------------------------------------

def test_texts_of_the_package_are_read_as_what_they_are_whatever_the_locale():
  root = Path(mlic_jax.__file__).parent
  for file in [*(root / "evaluation").rglob("*.py"), root / "coding" / "checkpoint_io.py"]:
    for call in re.findall(r"\.(?:read_text|write_text)\(([^()]*)\)", file.read_text("utf-8")):
      assert "utf-8" in call, f"{file.name} leaves the encoding to the locale"


def test_a_locale_without_the_letters_of_a_name_ends_nothing(tmp_path):
  (tmp_path / "猫.png").write_bytes(encode_lossless("a.png", np.zeros((5, 6, 3), np.uint8)))
  program = """if True:
    import sys
    from mlic_jax.commands import encode
    from helpers.empty_codec import EmptyCodec
    from mlic_jax.__main__ import main
    encode.load_codecs = lambda *_: [EmptyCodec()]
    sys.exit(main())"""
  path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (2, 1, 0))
  ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": path}
  command = [sys.executable, "-c", program, "encode", tmp_path, "--out-dir", tmp_path / "out", "--ckpt", "x"]
  done = subprocess.run(command, env=os.environ | ascii_only, capture_output=True, timeout=300)
  assert done.returncode == 0 and not done.stderr and done.stdout.isascii()
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["猫.mlic"]
