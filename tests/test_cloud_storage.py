"""Tests of paths in cloud storage, with a local bucket (helpers/fake_bucket.py)."""
import json
import re
import shutil
import subprocess
import sys
import time

import fsspec
import jax
import numpy as np
import pytest
from conftest import random_variables
from helpers import fake_bucket
from helpers.light_codec import UNSHUFFLED
from helpers.small_training import cut, final_state, rows, small_config, standin_compiled_once, stop_at  # noqa: F401 (fixtures)

from mlic_jax.__main__ import main
from mlic_jax.coding.checkpoint_io import CheckpointError, load_model, save_model
from mlic_jax.data.image_io import ImageError
from mlic_jax.folder_lock import FolderInUse
from mlic_jax.paths import PathError, as_path, copy_files
from mlic_jax.training import loop
from mlic_jax.training.checkpoints import storage_problem
from mlic_jax.training.preflight import workdir_lock


@pytest.fixture(name="bucket")
def cloud_storage():
  with fake_bucket.bucket() as url:
    yield url


def names(prefix):
  start = f"bucket/{prefix}/"
  return sorted(name.removeprefix(start) for name in fake_bucket.OBJECTS if name.startswith(start))


def cut_behind_the_checkpoint():
  """The power is cut when the checkpoint of step 5, which is written in the background, is whole."""
  end = time.monotonic() + 60
  while "checkpoints/5/commit_success.txt" not in names("run"):
    assert time.monotonic() < end, names("run")
    time.sleep(0.02)
  cut()


def test_a_run_on_remote_paths_that_is_killed_ends_in_the_bits_of_a_local_one(
    config, standin, bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  copy_files(tmp_path / "photographs", as_path(f"{bucket}/photographs"))
  loop.train_and_evaluate(config, tmp_path / "run")
  config.data_dir = f"{bucket}/photographs"
  with monkeypatch.context() as patch:
    stop_at(patch, 8, cut_behind_the_checkpoint)
    with pytest.raises(BaseException, match="^$"):
      loop.train_and_evaluate(config, f"{bucket}/run")
  with workdir_lock(as_path(f"{bucket}/run")), pytest.raises(FolderInUse, match="gs://bucket/run is in use"):
    loop.train_and_evaluate(config, f"{bucket}/run")
  loop.train_and_evaluate(config, f"{bucket}/run")

  remote, here = final_state(config, f"{bucket}/run"), final_state(config, tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, remote, here)
  for name in ("metrics.csv", "eval.csv"):
    written = fake_bucket.OBJECTS[f"bucket/run/{name}"][0].decode().splitlines()
    assert len(written) == len((tmp_path / "run" / name).read_text().splitlines())
  assert any(name.startswith("tensorboard/") for name in names("run"))
  model = load_model(f"{bucket}/run")
  assert model.name == "run" and model.fingerprint == load_model(tmp_path / "run").fingerprint
  assert json.loads(fake_bucket.OBJECTS["bucket/run/config.json"][0])["model"]["M"] == 8
  assert not (tmp_path / "gs:").exists()   # no path of the bucket was taken for a local one


def test_a_remote_model_is_replaced_whole_or_not_at_all(bucket):
  variables = random_variables(UNSHUFFLED)
  save_model(f"{bucket}/m", UNSHUFFLED, variables, {"steps": 1})
  first = load_model(f"{bucket}/m")
  changed = jax.tree.map(np.copy, variables)
  changed["params"]["log_gain"] += 1
  for refused in ("manifest.ocdbt", "tables.npz", "config.json"):  # wherever the store fails
    fake_bucket.REFUSED[:] = [refused]
    with pytest.raises(OSError, match="not available"):
      save_model(f"{bucket}/m", UNSHUFFLED, changed, {"steps": 2})
    assert load_model(f"{bucket}/m").fingerprint == first.fingerprint
  fake_bucket.REFUSED.clear()
  save_model(f"{bucket}/m", UNSHUFFLED, changed, {"steps": 2})
  second = load_model(f"{bucket}/m")
  assert second.training == {"steps": 2} and second.fingerprint != first.fingerprint
  assert {name.split("/")[0] for name in names("m")} == {"config.json", second.fingerprint.hex()}  # nothing is left


def test_a_store_that_fails_does_not_end_a_training(config, standin, bucket, tmp_path, capsys, monkeypatch):
  usual = loop.RunLog.step

  def step(self, done):
    usual(self, done)
    fake_bucket.REFUSED[:] = ["checkpoints/5/state/ocdbt"] if done < 8 else []  # what TensorStore writes
  monkeypatch.setattr(loop.RunLog, "step", step)
  loop.train_and_evaluate(config, f"{bucket}/run")
  assert "no checkpoint at step" in capsys.readouterr().out
  assert final_state(config, f"{bucket}/run").state.step == 12


@pytest.mark.parametrize("behind", [
    "[http_response_code='403'] [tensorstore_spec='{\"create\":true}']", "[tensorstore_spec='{}']",
    "[source locations='tensorstore/kvstore/gcs_http/gcs_key_value_store.cc:1']"])
def test_what_tensorstore_says_of_a_store_that_fails_is_the_line_before_its_own_notes(behind):
  assert storage_problem(ValueError(f"PERMISSION_DENIED: Error writing\n \"a\" {behind}")) == (
      'PERMISSION_DENIED: Error writing "a"')
  assert storage_problem(ValueError("PERMISSION_DENIED: of something else")) is None


@pytest.mark.parametrize("command, message", [
    (["encode", "a.png", "gs://bucket/a.mlic", "--ckpt", "m"], "gs://bucket/a.mlic: cannot lie in remote storage"),
    (["ablate", "--data", "d", "--steps", "1", "--workdir", "gs://bucket/a"], "wanted a local path"),
    (["decode", "a.mlic", "a.png", "--ckpt", "s4://bucket/m"], "no storage of the kind s4:// is known")])
def test_what_cannot_lie_in_remote_storage_is_refused_in_one_line(command, message, capsys):
  assert main(command) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and message in err


def test_a_workdir_where_checkpoints_cannot_be_written_is_refused_in_one_line(config, tmp_path):
  fsspec.register_implementation("s3", fake_bucket.ObjectStoreFileSystem, clobber=True)
  for workdir, message in (("s3://bucket/run", "wanted a local folder or gs://"), ("s4://run", "no storage of")):
    with pytest.raises(PathError, match=message) as error:
      loop.train_and_evaluate(config, workdir)
    assert "\n" not in str(error.value)


def test_a_missing_remote_folder_or_model_is_one_line(config, bucket):
  config.data_dir = f"{bucket}/nothing"
  with pytest.raises(ImageError, match="gs://bucket/nothing: no such folder"):
    loop.train_and_evaluate(config, f"{bucket}/run")
  assert not fake_bucket.OBJECTS
  with pytest.raises(CheckpointError, match="gs://bucket/nothing: no such directory"):
    load_model(f"{bucket}/nothing")


def test_a_storage_whose_package_is_missing_is_one_line_that_names_it():
  code = "from mlic_jax.paths import as_path\ntry: as_path('gs://b/x')\nexcept ValueError as error: print(error)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert re.search(r"gs://b/x: .*gcsfs", done.stdout) or shutil.which("gcsfs")
