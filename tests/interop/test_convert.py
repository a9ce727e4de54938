"""Tests of the command `convert`: files of torch.save and NPZ to model directories, and back."""

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import compressai_fill, fake_bucket, golden_fill

import mlic_jax
from mlic_jax.__main__ import main
from mlic_jax.coding.checkpoint_io import load_model, save_model
from mlic_jax.interop.reference_weights import from_state_dict
from mlic_jax.interop.state_dict_files import read_state_dict
from mlic_jax.paths import as_path, copy_files

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


@pytest.fixture(scope="module")
def weights():
  return golden_fill.fill(json.loads((GOLDEN / "manifest_A.json").read_text()))


@pytest.fixture(scope="module")
def released(weights, tmp_path_factory):
  """Returns the weights of MLIC++ in the authors' layout, as an NPZ file."""
  path = tmp_path_factory.mktemp("released") / "weights.npz"
  np.savez(path, **weights)
  return path


@pytest.fixture(scope="module")
def ckpt(weights, tmp_path_factory):
  path = tmp_path_factory.mktemp("checkpoints") / "ckpt"
  save_model(path, *from_state_dict(weights))
  return path


def refused(argv, capsys) -> str:
  """Returns the line on stderr of a command that fails with exit status 2."""
  assert main(["convert", *map(str, argv)]) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1
  return err


def assert_same_model(path, config, variables):
  model = load_model(path)
  assert model.config == config
  jax.tree.map(np.testing.assert_array_equal, model.variables, variables)


# --- files --------------------------------------------------------------------------------

def test_a_converted_release_is_a_checkpoint(weights, released, tmp_path, capsys):
  assert main(["convert", str(released), str(tmp_path / "ckpt")]) == 0
  assert capsys.readouterr().out == f"{tmp_path / 'ckpt'}: mlic_plus_plus, N=32, M=96, 3 slices, window of 5\n"
  assert_same_model(tmp_path / "ckpt", *from_state_dict(weights))
  assert mlic_jax.Codec.load(tmp_path / "ckpt").qualities == (None,)


def test_a_model_goes_to_compressai_and_back_without_pytorch(ckpt, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "torch", None)  # an import fails
  assert main(["convert", str(ckpt), str(tmp_path / "theirs.npz"), "--to", "compressai"]) == 0
  state_dict = np.load(tmp_path / "theirs.npz", allow_pickle=False)
  assert {name for name, *_ in compressai_fill.layouts()["mlicpp"]["small"]["state_dict"]} == set(state_dict)
  assert main(["convert", str(tmp_path / "theirs.npz"), str(tmp_path / "again")]) == 0
  original = load_model(ckpt)
  assert_same_model(tmp_path / "again", original.config, original.variables)
  assert capsys.readouterr().out.splitlines()[0].startswith(f"{tmp_path / 'theirs.npz'}: mlic_plus_plus, N=32, M=96, 3")


def test_a_model_in_cloud_storage_goes_to_compressai(ckpt, tmp_path):
  with fake_bucket.bucket() as url:
    copy_files(ckpt, as_path(f"{url}/ckpt"))
    assert main(["convert", f"{url}/ckpt", str(tmp_path / "theirs.npz"), "--to", "compressai"]) == 0
  assert len(np.load(tmp_path / "theirs.npz")) == len(compressai_fill.layouts()["mlicpp"]["small"]["state_dict"])


def test_a_state_dict_goes_from_one_layout_to_the_other(released, weights, tmp_path):
  argv = ["convert", str(released), str(tmp_path / "theirs.npz"), "--to", "compressai", "--variant", "mlic_plus"]
  assert main(argv) == 0
  assert main(["convert", str(tmp_path / "theirs.npz"), str(tmp_path / "authors.npz"), "--to", "authors"]) == 0
  written = np.load(tmp_path / "authors.npz", allow_pickle=False)
  for name, array in weights.items():
    np.testing.assert_array_equal(written[name], array, err_msg=name)


def test_a_converted_model_of_mlic_plus_says_which_settings_it_has(released, tmp_path, capsys):
  assert main(["convert", str(released), str(tmp_path / "ckpt"), "--variant", "mlic_plus"]) == 0
  assert capsys.readouterr().out.endswith(": mlic_plus, N=32, M=96, 3 slices, window of 5, average_unseen=True\n")
  assert load_model(tmp_path / "ckpt").config.contexts[1] == "global_intra_softmax"


def test_files_of_pytorch_are_read_as_weights_only_and_written_under_state_dict(weights, ckpt, tmp_path, monkeypatch):
  saved, tensors = {}, {name: SimpleNamespace(numpy=lambda value=value: value) for name, value in weights.items()}

  def load(file, **options):
    assert options == dict(map_location="cpu", weights_only=True)
    return {"epoch": 3, "state_dict": tensors}

  def save(content, file):
    file.write(b"tensors")
    saved.update(content)

  monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load, save=save, from_numpy=lambda array: array))
  (tmp_path / "weights.pth.tar").write_bytes(b"a zip")
  assert main(["convert", str(tmp_path / "weights.pth.tar"), str(tmp_path / "ckpt")]) == 0
  assert_same_model(tmp_path / "ckpt", *from_state_dict(weights))
  assert main(["convert", str(ckpt), str(tmp_path / "theirs.pth.tar"), "--to", "authors"]) == 0
  assert (tmp_path / "theirs.pth.tar").read_bytes() == b"tensors" and list(saved) == ["state_dict"]
  for name, array in weights.items():
    np.testing.assert_array_equal(saved["state_dict"][name], array, err_msg=name)


# --- errors, one line each ----------------------------------------------------------------

def broken(file, **options):
  raise RuntimeError("not a zip\narchive")


def hostile(file, **options):
  raise pickle.UnpicklingError("Weights only load failed. Do this and that.\n\tWeightsUnpickler error: Unsupported "
                               "global: GLOBAL os.system was not an allowed global by default. \nMore advice.")


@pytest.mark.parametrize("torch, message", [
    (None, "reading it needs PyTorch, which is not installed; wanted pip install torch, or an NPZ file"),
    (SimpleNamespace(load=broken), "PyTorch cannot read it (RuntimeError: not a zip archive)"),
    (SimpleNamespace(load=hostile),
     "weights.pth.tar: holds more than weights (os.system); such a file could run code, so it is refused\n"),
    (SimpleNamespace(load=lambda file, **options: [1, 2]), "holds no state dict"),
    (SimpleNamespace(load=lambda file, **options: {"a": SimpleNamespace(numpy=lambda: np.ones(2))}),
     "weights.pth.tar: not a state dict of the MLIC models: it lacks 'g_a.analysis_transform.6.weight'")])
def test_a_file_of_pytorch_that_cannot_be_converted_is_one_line(tmp_path, monkeypatch, capsys, torch, message):
  monkeypatch.setitem(sys.modules, "torch", torch)  # None: an import fails
  (tmp_path / "weights.pth.tar").write_bytes(b"a zip")
  assert message in refused([tmp_path / "weights.pth.tar", tmp_path / "ckpt"], capsys)
  assert not (tmp_path / "ckpt").exists()


ELIC = {"g_a.0.weight": (192, 3, 5, 5), "g_a.1.conv1.weight": (96, 192, 1, 1), "g_a.14.conv_a.0.conv.0.weight": (160,),
        "latent_codec.h_a.0.weight": (192, 320, 3, 3), "latent_codec.y.channel_context.y1.0.weight": (224, 16, 5, 5),
        "latent_codec.y.latent_codec.y0.context_prediction.weight": (32, 16, 5, 5),
        "latent_codec.z.entropy_bottleneck.quantiles": (192, 1, 3)}


@pytest.mark.parametrize("change, message", [
    (lambda w: {name: np.zeros(shape, np.float32) for name, shape in ELIC.items()},
     "not a state dict of the MLIC models: it lacks 'g_a.analysis_transform.6.weight'; the nearest is 'g_"),
    (lambda w: {name: value for name, value in w.items() if name != "h_s.increase.4.bias"},
     "missing keys: h_s.increase.4.bias\n"),
    (lambda w: w | {"lrp_anchor.1.lrp_transform.2.weight": np.zeros((128, 223, 3, 3), np.float32)},
     "lrp_anchor.1.lrp_transform.2.weight has the shape (128, 223, 3, 3); wanted (128, 224, 3, 3)\n"),
    (lambda w: w | {"h_a.reduction.0.bias": np.zeros(32, np.int32)},
     "h_a.reduction.0.bias holds int32; wanted floating-point numbers\n"),
    (lambda w: w | {"h_a.reduction.0.bias": np.full(32, np.nan, np.float32)},
     "parameter h_a/conv0/bias is not finite; the model is not written to")])
def test_a_state_dict_that_is_no_mlic_model_is_one_line(weights, tmp_path, capsys, change, message):
  np.savez(tmp_path / "weights.npz", **change(weights))
  assert message in refused([tmp_path / "weights.npz", tmp_path / "ckpt"], capsys)
  assert not (tmp_path / "ckpt").exists()


def test_a_truncated_file_and_one_that_is_no_archive_are_one_line(released, tmp_path, capsys):
  blob = released.read_bytes()
  for name, content in ("cut.npz", blob[:len(blob) // 2]), ("text.npz", b"weights"), ("empty.npz", b""):
    (tmp_path / name).write_bytes(content)
    message = refused([tmp_path / name, tmp_path / "ckpt"], capsys)
    assert f"{tmp_path / name}: NumPy cannot read it as an NPZ file (" in message
  assert "No such file or directory" in refused([tmp_path / "none.npz", tmp_path / "ckpt"], capsys)


class Hostile:
  """Unpickling it would make a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return Path.touch, (self.path,)


def test_pickled_objects_in_an_npz_file_are_refused_and_not_run(tmp_path, capsys):
  np.savez(tmp_path / "hostile.npz", weight=np.array([Hostile(tmp_path / "run")], dtype=object))
  message = refused([tmp_path / "hostile.npz", tmp_path / "ckpt"], capsys)
  assert "Object arrays cannot be loaded when allow_pickle=False" in message
  assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_checkpoint_is_not_replaced(released, tmp_path, capsys):
  (tmp_path / "photographs").mkdir()
  message = refused([released, tmp_path / "photographs"], capsys)
  assert "exists and is not a model directory, so it is not replaced" in message


def test_a_target_that_cannot_be_written_is_refused_before_the_work(ckpt, released, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "torch", None)
  to = lambda source, target, *rest: refused([source, target, "--to", "compressai", *rest], capsys)
  assert "theirs.zip: wanted a name that ends in .npz, for NumPy, or in .pth.tar" in to(
      ckpt, tmp_path / "theirs.zip")
  assert "writing it needs PyTorch, which is not installed" in to(ckpt, tmp_path / "theirs.pth.tar")
  assert "No such file or directory" in to(ckpt, tmp_path / "nowhere" / "theirs.npz")
  assert "is also the source; wanted another file" in to(released, released)
  with fake_bucket.bucket() as url:
    assert "cannot lie in remote storage" in to(ckpt, f"{url}/theirs.npz")
  assert "--variant is for state dicts" in to(ckpt, tmp_path / "theirs.npz", "--variant", "mlic_plus")


def test_a_model_that_compressai_does_not_have_is_one_line_and_no_file(tiny_checkpoint, tmp_path, capsys):
  message = refused([tiny_checkpoint, tmp_path / "theirs.npz", "--to", "compressai"], capsys)
  assert f"{tiny_checkpoint}: a variable-rate model (num_rates=3), which CompressAI does not have; wanted" in message
  assert not list(tmp_path.iterdir())


class Tensor:
  """As PyTorch's: NumPy is refused what NumPy does not have."""

  def __init__(self, kind, needs_gradient=False):
    self.kind, self.needs_gradient = kind, needs_gradient

  def detach(self):
    return Tensor(self.kind)

  def is_floating_point(self):
    return self.kind != "int64"

  def float(self):
    return Tensor("float32", self.needs_gradient)

  def numpy(self):
    if self.needs_gradient or self.kind == "bfloat16":
      raise TypeError("Got unsupported ScalarType")
    return np.ones(2, self.kind)


def test_weights_are_read_in_half_precision_and_as_parameters_that_are_trained(tmp_path, monkeypatch, capsys):
  (tmp_path / "w.pth").touch()
  content = {"a": Tensor("bfloat16"), "b": Tensor("float32", True), "c": Tensor("float16"), "d": Tensor("int64")}
  monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=lambda *_, **__: content))
  assert [value.dtype for value in read_state_dict(tmp_path / "w.pth").values()] == [
      np.float32, np.float32, np.float32, np.int64]
  content[3] = Tensor("float32")
  assert "the key 3 is not a name" in refused([tmp_path / "w.pth", tmp_path / "ckpt"], capsys)
