"""The authors' state dicts in the shapes in which they are met, and those that are refused."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import golden_fill

import mlic_jax
from mlic_jax.__main__ import main
from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.interop import reference_weights
from mlic_jax.interop.reference_weights import WeightsError, from_state_dict

MANIFEST = Path(__file__).parents[1] / "fixtures" / "golden" / "manifest_A.json"


@pytest.fixture(scope="module")
def weights():
  return golden_fill.fill(json.loads(MANIFEST.read_text()))


def assert_same(a, b):
  assert a[0] == b[0]
  jax.tree.map(np.testing.assert_array_equal, a[1], b[1])


def test_wrappers_prefixes_and_both_namings_of_the_bottleneck_give_the_same_variables(weights):
  old_names = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}
  renamed = {}
  for name, value in weights.items():
    first, _, rest = name.partition(".")
    if first == "entropy_bottleneck" and "." in rest:
      kind, number = rest.split(".")
      name = f"entropy_bottleneck.{old_names[kind]}{number}"
    renamed[f"module.{name}"] = value
  renamed["module.gaussian_conditional.scale_table"] = np.zeros(64, np.float32)  # a buffer
  assert_same(from_state_dict({"state_dict": renamed}), from_state_dict(weights))


def test_unknown_and_missing_keys_are_listed_with_the_nearest_names(weights):
  broken = dict(weights)
  broken["h_a.reduction.0.weigth"] = broken.pop("h_a.reduction.0.weight")
  with pytest.raises(WeightsError) as caught:
    from_state_dict(broken)
  message = str(caught.value)
  assert "missing keys: h_a.reduction.0.weight (nearest: h_a.reduction.0.weigth)" in message
  assert "unknown keys: h_a.reduction.0.weigth (nearest: h_a.reduction.0.weight)" in message
  assert "\n" not in message


def test_another_state_dict_is_refused(weights):
  with pytest.raises(WeightsError, match="not a state dict of MLIC"):
    from_state_dict({"conv.weight": np.zeros((3, 3))})


def test_a_converted_release_is_a_checkpoint(weights, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(reference_weights, "read_state_dict", lambda path: weights)
  assert main(["convert", "official.pth.tar", str(tmp_path / "ckpt")]) == 0
  assert "N=32, M=96, 3 slices" in capsys.readouterr().out
  model = load_model(tmp_path / "ckpt")
  assert_same((model.config, model.variables), from_state_dict(weights))
  assert mlic_jax.Codec.load(tmp_path / "ckpt").qualities == (None,)


def test_a_file_is_read_by_pytorch_without_running_code_from_it(tmp_path, monkeypatch):
  path = tmp_path / "official.pth.tar"
  path.write_bytes(b"a zip")
  tensor = SimpleNamespace(numpy=lambda: np.ones(2, np.float32))

  def load(file, **options):
    assert file == path and options == dict(map_location="cpu", weights_only=True)
    return {"epoch": 3, "state_dict": {"module.g_a": tensor}}

  monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load))
  state_dict = reference_weights.read_state_dict(path)
  assert list(state_dict) == ["module.g_a"] and state_dict["module.g_a"].tolist() == [1, 1]


def broken(file, **options):
  raise RuntimeError("not a zip\narchive")


@pytest.mark.parametrize("torch, message", [
    (None, "takes PyTorch, which is not installed here; pip install torch"),
    (SimpleNamespace(load=broken), "PyTorch cannot read it (RuntimeError: not a zip archive)"),
    (SimpleNamespace(load=lambda file, **options: [1, 2]), "holds no state dict"),
    (SimpleNamespace(load=lambda file, **options: {"a": SimpleNamespace(numpy=lambda: np.ones(2))}),
     "official.pth.tar: not a state dict of MLIC++")])
def test_a_file_that_cannot_be_converted_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, torch, message):
  monkeypatch.setitem(sys.modules, "torch", torch)  # None: an import fails
  (tmp_path / "official.pth.tar").write_bytes(b"a zip")
  assert main(["convert", str(tmp_path / "official.pth.tar"), str(tmp_path / "ckpt")]) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and message in err and not (tmp_path / "ckpt").exists()


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path, capsys):
  (tmp_path / "photographs").mkdir()
  assert main(["convert", "official.pth.tar", str(tmp_path / "photographs")]) == 2
  assert "no model directory that could be replaced" in capsys.readouterr().err
