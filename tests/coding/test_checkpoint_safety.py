"""Tests of untrusted model directories: nothing outside is read, and nothing inside exhausts the memory."""
import errno
import json
import os
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from mlic_jax.coding import checkpoint_io
from mlic_jax.coding.checkpoint_io import CheckpointError, load_model


@pytest.fixture
def model(tiny_checkpoint, tmp_path):
  """Returns a copy of a model directory, to forge."""
  return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def refused(model, message):
  with pytest.raises(CheckpointError, match=message) as error:
    load_model(model)
  return "\n" not in str(error.value)


def edit(model, **changes):
  settings = json.loads((model / "config.json").read_text())
  (model / "config.json").write_text(json.dumps(settings | changes))


@pytest.mark.parametrize("parts", ["..", "../other", "/etc", "0123456789abcde/", 3, ["a"]])
def test_parts_lie_in_the_directory(model, parts):
  shutil.copytree(model, model.parent / "other")
  edit(model, parts=parts)
  assert refused(model, "config.json has parts=.*; wanted 16 hexadecimal digits")


@pytest.mark.parametrize("name", ["config.json", "tables.npz", "params", "params/manifest.ocdbt"])
def test_a_link_that_leaves_the_directory_is_refused(model, tmp_path, name):
  (model / name).rename(tmp_path / "secret")
  (model / name).symlink_to(tmp_path / "secret")
  assert refused(model, f"{name} is a link to '.*secret', outside of the model directory; wanted a copy without links")


def test_links_within_the_directory_and_to_the_directory_are_read(model, tmp_path):
  (model / "tables.npz").rename(model / "tables_2.npz")
  (model / "tables.npz").symlink_to("tables_2.npz")
  (tmp_path / "link").symlink_to(model)
  assert load_model(tmp_path / "link").fingerprint == load_model(model).fingerprint


def test_a_pipe_in_place_of_a_file_is_not_waited_for(model):
  (model / "tables.npz").unlink()
  os.mkfifo(model / "tables.npz")
  assert refused(model, "tables.npz is neither a file nor a folder")


def test_tables_that_would_fill_the_memory_are_refused_before_they_are_read(model):
  np.savez_compressed(model / "tables.npz", lookup=np.zeros(2**24, np.int32), offset=np.zeros(80, np.int32))
  assert (model / "tables.npz").stat().st_size < 10**5
  assert refused(model, "tables.npz has an array of 67108992 bytes; the model needs at most")


@pytest.mark.parametrize("change, message", [
    (lambda lookup: lookup.astype(float), "tables.npz does not hold one-dimensional integer arrays"),
    (lambda lookup: np.array([{}], object), "tables.npz cannot be read"),
    (lambda lookup: np.where(lookup == 0, 5, lookup), "the CDF table is damaged: its counts do not rise"),
    (lambda lookup: lookup[:-1], "the CDF table is damaged"),
], ids=["floats", "pickles", "no_zero", "cut"])
def test_tables_that_a_range_coder_would_run_away_with_are_refused(model, change, message):
  with np.load(model / "tables.npz") as arrays:
    lookup, offset = arrays["lookup"], arrays["offset"]
  np.savez(model / "tables.npz", lookup=change(lookup), offset=offset)
  assert refused(model, message)


def test_a_config_of_gigabytes_is_not_read(model, monkeypatch):
  monkeypatch.setattr(checkpoint_io, "CONFIG_BYTES_MAX", 100)
  assert refused(model, "config.json has more than 100 bytes")


@pytest.mark.parametrize("training", [[1], "mse", 3])
def test_the_record_of_the_training_is_an_object(model, training):
  edit(model, training=training)
  assert refused(model, f"training in config.json is {type(training).__name__}; wanted an object or null")


def test_parameters_are_nested_dictionaries_of_numbers(model):
  shutil.rmtree(model / "params")
  ocp.PyTreeCheckpointer().save((model / "params").absolute(), {"g_a": [np.zeros(2, np.float32), np.ones(2)]})
  assert refused(model, "the parameters are not nested dictionaries of arrays")


@pytest.mark.parametrize("error, message", [
    (MemoryError(), "the parameters could not be read: not enough memory"),
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "the parameters could not be read: Too many open files"),
    (OSError(errno.EIO, os.strerror(errno.EIO)), "the parameters could not be read: Input/output error"),
    (ValueError("PERMISSION_DENIED: Error opening"), "the parameters could not be read: Permission denied"),
    (ValueError("RESOURCE_EXHAUSTED: out of memory"), "the parameters could not be read: not enough memory"),
    (ValueError("NOT_FOUND: a chunk\nis missing"), r"the parameters cannot be read \(NOT_FOUND: a chunk is missing\)")])
def test_a_problem_of_the_machine_is_told_from_damage(model, monkeypatch, error, message):
  class Fails:
    def restore(self, path):
      if isinstance(error, ValueError):
        raise error
      raise RuntimeError("in Orbax") from error

  monkeypatch.setattr(checkpoint_io, "_checkpointer", Fails)
  assert refused(model, message)
