"""Tests of copies of parameters: they replace Orbax, and never hide what has changed in a model directory."""
import os
import shutil

import jax
import numpy as np
import pytest

from mlic_jax.coding import checkpoint_io
from mlic_jax.coding.checkpoint_io import CheckpointError, load_model
from mlic_jax.runtime import startup


@pytest.fixture(name="model")
def model_with_a_copy(tiny_checkpoint, tmp_path, monkeypatch):
  """A model directory whose parameters have a copy in the cache folder."""
  monkeypatch.setenv("MLIC_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(startup, "code", "as it is now")
  path = shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
  load_model(path)
  return path


@pytest.fixture(name="restored")
def number_of_restored_directories(monkeypatch):
  """A list with an entry for each time that Orbax was used."""
  seen, restore = [], checkpoint_io._restore
  monkeypatch.setattr(checkpoint_io, "_restore", lambda *args: seen.append(args) or restore(*args))
  return seen


def the_copy(model):
  path, = (model.parent / "cache" / "params").iterdir()
  return path


def test_a_copy_has_the_same_parameters(model, restored, monkeypatch):
  copied = load_model(model)
  assert not restored
  monkeypatch.setattr(startup, "code", None)              # outside of the commands
  from_orbax = load_model(model)
  assert restored and jax.tree.structure(copied.variables) == jax.tree.structure(from_orbax.variables)
  jax.tree.map(np.testing.assert_array_equal, copied.variables, from_orbax.variables)
  assert copied.fingerprint == from_orbax.fingerprint


DAMAGE = {"empty": lambda content: b"", "cut": lambda content: content[:-200],
          "zeros": lambda content: bytes(len(content)),
          "a_bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_not_used_and_written_again(model, restored, damage):
  copy, whole = the_copy(model), the_copy(model).read_bytes()
  expected = load_model(model)
  copy.write_bytes(DAMAGE[damage](whole))
  jax.tree.map(np.testing.assert_array_equal, load_model(model).variables, expected.variables)
  assert len(restored) == 1 and copy.read_bytes() == whole


def test_a_copy_that_another_user_can_have_written_is_not_read(model, restored):
  the_copy(model).chmod(0o666)
  load_model(model)
  assert len(restored) == 1


def test_a_copy_does_not_hide_damage_of_the_model_directory(model):
  files = [each for each in (model / "params").rglob("*") if each.is_file()]
  largest = max(files, key=lambda each: each.stat().st_size)
  status, content = largest.stat(), largest.read_bytes()
  largest.write_bytes(bytes(len(content)))
  os.utime(largest, ns=(status.st_atime_ns, status.st_mtime_ns))   # the size and the time of the change are the same
  with pytest.raises(CheckpointError, match="the parameters cannot be read"):
    load_model(model)
  shutil.rmtree(model / "params")
  with pytest.raises(CheckpointError, match="the parameters "):
    load_model(model)


def test_a_copy_does_not_hide_another_fingerprint_or_table(model, restored):
  text = (model / "config.json").read_text()
  fingerprint = load_model(model).fingerprint.hex()
  (model / "config.json").write_text(text.replace(fingerprint, "0" * 16))
  with pytest.raises(CheckpointError, match=f"the fingerprint of its files is {fingerprint}"):
    load_model(model)
  (model / "config.json").write_text(text)
  with np.load(model / "tables.npz") as arrays:
    np.savez(model / "tables.npz", lookup=arrays["lookup"], offset=arrays["offset"] + 1)
  with pytest.raises(CheckpointError, match="the fingerprint of its files is"):
    load_model(model)
