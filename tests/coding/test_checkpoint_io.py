"""Tests of model directories: round trips, and refusals of invalid directories in one line."""
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import random_variables
from helpers.light_codec import UNSHUFFLED

from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import CheckpointError, _fingerprint, load_model, save_model

CONFIG = dataclasses.replace(UNSHUFFLED, widths=(16, 16))


@pytest.fixture(scope="module")
def variables():
  return random_variables(CONFIG)


@pytest.fixture(scope="module")
def checkpoint(variables, tmp_path_factory):
  path = tmp_path_factory.mktemp("checkpoints") / "tiny"
  save_model(path, CONFIG, variables, training={"steps": 300})
  return path


@pytest.fixture
def damaged(checkpoint, tmp_path):
  """Returns a copy of a model directory, to damage."""
  return shutil.copytree(checkpoint, tmp_path / "damaged")


def edit(path, **changes):
  """Changes entries of config.json; a dict is merged into the existing entry."""
  settings = json.loads((path / "config.json").read_text())
  for name, value in changes.items():
    settings[name] = {**settings[name], **value} if isinstance(value, dict) else value
  (path / "config.json").write_text(json.dumps(settings))


def test_a_model_is_loaded_as_it_was_saved(checkpoint, variables):
  model = load_model(checkpoint)
  assert (model.name, model.config, model.training) == ("tiny", CONFIG, {"steps": 300})
  assert jax.tree.structure(model.variables) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, model.variables, variables)
  for stored, built in zip(model.table, build_table(CONFIG, variables)):
    np.testing.assert_array_equal(stored, built)


def test_few_numbers_are_formatted_as_text_while_a_model_is_loaded(checkpoint, variables):
  """asyncio, in which Orbax reads, makes a text of the result that nobody reads."""
  formatted = []
  with np.printoptions(formatter={"float_kind": lambda number: formatted.append(number) or "number"}):
    load_model(checkpoint)
  assert len(formatted) <= 2**4 * len(jax.tree.leaves(variables))


def test_the_workdir_of_a_run_stands_for_its_model(checkpoint, tmp_path):
  shutil.copytree(checkpoint, tmp_path / "my_run" / "model")
  assert load_model(tmp_path / "my_run").name == load_model(tmp_path / "my_run" / "model").name == "my_run"


def test_saving_again_replaces_the_model_and_leaves_nothing_beside_it(tmp_path, variables):
  save_model(tmp_path / "m", CONFIG, variables, {"steps": 1})
  save_model(tmp_path / "m", CONFIG, variables, {"steps": 2})
  assert load_model(tmp_path / "m").training == {"steps": 2}
  assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_model_that_cannot_be_saved_leaves_the_old_one(tmp_path, variables):
  save_model(tmp_path / "m", CONFIG, variables)
  diverged = {"params": dict(variables["params"], log_gain=np.full((3, 32), np.nan, np.float32))}
  with pytest.raises(ValueError, match="log_gain is not finite"):
    save_model(tmp_path / "m", CONFIG, diverged)
  with pytest.raises(TypeError):
    save_model(tmp_path / "m", CONFIG, variables, training={"not": object()})
  load_model(tmp_path / "m")
  assert [p.name for p in tmp_path.iterdir()] == ["m"]


class Killed(BaseException):
  """Simulates SIGKILL: no error handler catches it."""


@pytest.mark.parametrize("renames_done, found", [(1, 1), (2, 2)])
def test_a_run_that_is_killed_while_a_model_is_replaced_leaves_one_that_is_found(
    renames_done, found, tmp_path, variables, monkeypatch):
  path, renames, usual = tmp_path / "run" / "model", [], Path.rename

  def rename(self, target):
    if len(renames) == renames_done:
      raise Killed
    renames.append(usual(self, target))

  def rmtree(*_, **__):                                  # nobody cleans up after a kill
    if len(renames) == 2:
      raise Killed

  save_model(path, CONFIG, variables, {"steps": 1})
  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(Path, "rename", rename)
    patch.setattr(shutil, "rmtree", rmtree)
    save_model(path, CONFIG, variables, {"steps": 2})
  for each in path.parent, path:
    model = load_model(each)
    assert (model.name, model.training) == ("run", {"steps": found})
  save_model(path, CONFIG, variables, {"steps": 3})        # by a process of the same number, as in containers
  assert load_model(path).training == {"steps": 3} and [each.name for each in path.parent.iterdir()] == ["model"]


def test_a_model_is_replaced_behind_its_link_and_may_have_the_longest_name(tmp_path, variables):
  real = tmp_path / ("m" * 255)
  (tmp_path / "link").symlink_to(real)
  for steps in 1, 2:
    save_model(tmp_path / "link", CONFIG, variables, {"steps": steps})
    assert (tmp_path / "link").is_symlink() and load_model(real).training == {"steps": steps}
  assert len(list(tmp_path.iterdir())) == 2


def test_the_fingerprint_follows_what_decides_decoding_and_nothing_else(checkpoint, tmp_path, variables):
  fingerprint = load_model(checkpoint).fingerprint
  assert len(fingerprint) == 8
  save_model(tmp_path / "renamed", CONFIG, variables, training=None)
  assert load_model(tmp_path / "renamed").fingerprint == fingerprint

  changed = jax.tree.map(np.copy, variables)
  changed["params"]["g_s"]["in"]["bias"][0] += 1e-6
  save_model(tmp_path / "changed", CONFIG, changed)
  assert load_model(tmp_path / "changed").fingerprint != fingerprint

  save_model(tmp_path / "other", dataclasses.replace(CONFIG, window_size=3), variables)
  assert load_model(tmp_path / "other").fingerprint != fingerprint  # any field of the config counts

  with np.load(tmp_path / "changed" / "tables.npz") as arrays:
    tables = dict(arrays)
  tables["lookup"][2] += 1
  edit(tmp_path / "renamed", fingerprint=None)
  np.savez(tmp_path / "renamed" / "tables.npz", **tables)
  assert load_model(tmp_path / "renamed").fingerprint != fingerprint


def test_the_unrolling_of_the_scan_is_no_part_of_the_fingerprint(checkpoint, tmp_path, variables):
  """scan_unroll changes only compilation. Older versions wrote it into config.json and the fingerprint."""
  fingerprint = load_model(checkpoint).fingerprint
  save_model(tmp_path / "model", CONFIG, variables)
  assert "scan_unroll" not in json.loads((tmp_path / "model" / "config.json").read_text())["model"]
  for value in (0, 1, 7):
    edit(tmp_path / "model", model={"scan_unroll": value})
    assert load_model(tmp_path / "model").fingerprint == fingerprint
    assert load_model(tmp_path / "model").config == CONFIG
  edit(tmp_path / "model", fingerprint=None)  # of programs that wrote none
  assert load_model(tmp_path / "model").fingerprint == fingerprint


def test_a_model_of_an_older_program_keeps_the_fingerprint_that_counted_its_unrolling(tmp_path, variables):
  """Every file of such a model has this fingerprint."""
  save_model(tmp_path / "model", CONFIG, variables)
  model, fields = load_model(tmp_path / "model"), CONFIG.to_dict()
  written = _fingerprint(fields | {"scan_unroll": 2}, model.variables["params"], model.table)
  assert written != model.fingerprint
  for value in (2, 0, 1):
    edit(tmp_path / "model", model={"scan_unroll": value}, fingerprint=written.hex())
    assert load_model(tmp_path / "model").fingerprint == written


@pytest.mark.parametrize("changes, message", [
    (dict(format=2), "format 2 of a model directory; this version reads format 1"),
    (dict(model=dict(num_slice=2)), "no field 'num_slice'; the nearest is 'num_slices'"),
    (dict(model=dict(M=33)), "M=33 does not divide"),
    (dict(model=dict(M="x")), "M='x'"),
    (dict(model=dict(N=24)), r"has shape \(.*\), but config.json implies \("),
    (dict(model=dict(num_rates=0)), r"log_gain has shape \(3, 32\), but config.json implies none"),
    (dict(model=3), "format 1"),
])
def test_a_config_that_does_not_fit_is_refused(changes, message, damaged):
  edit(damaged, **changes)
  with pytest.raises(CheckpointError, match=message) as error:
    load_model(damaged)
  assert "\n" not in str(error.value) and str(damaged) in str(error.value)


@pytest.mark.parametrize("file, content, message", [
    ("config.json", b"{", "config.json cannot be read"),
    ("config.json", b"[]", "config.json cannot be read"),
    ("config.json", None, "config.json is missing"),
    ("tables.npz", b"PK\3\4", "tables.npz cannot be read"),
    ("tables.npz", None, "tables.npz cannot be read"),
    ("params/manifest.ocdbt", b"?", "parameters cannot be read"),
    ("params/_METADATA", None, "parameters cannot be read"),
])
def test_a_damaged_directory_is_refused(file, content, message, damaged):
  (damaged / file).unlink()
  if content is not None:
    (damaged / file).write_bytes(content)
  with pytest.raises(CheckpointError, match=message) as error:
    load_model(damaged)
  assert "\n" not in str(error.value)


def test_a_directory_without_a_model_is_told_from_a_missing_one(tmp_path):
  with pytest.raises(CheckpointError, match="no such directory"):
    load_model(tmp_path / "none")
  with pytest.raises(CheckpointError, match="is no model directory"):
    load_model(tmp_path)


def test_tables_of_another_model_are_refused(damaged):
  with np.load(damaged / "tables.npz") as arrays:
    lookup, offset = arrays["lookup"], arrays["offset"]
  np.savez(damaged / "tables.npz", lookup=lookup, offset=offset[:-1])
  with pytest.raises(CheckpointError, match="tables.npz has 79 rows, but the model needs 80"):
    load_model(damaged)


def test_parts_that_were_not_saved_together_are_refused(damaged, tmp_path, variables):
  save_model(tmp_path / "other", CONFIG, random_variables(CONFIG, seed=1))
  shutil.rmtree(damaged / "params")
  shutil.copytree(tmp_path / "other" / "params", damaged / "params")
  with pytest.raises(CheckpointError, match="fingerprint of its files is [0-9a-f]{16}, config.json has [0-9a-f]{16}"):
    load_model(damaged)


def test_a_directory_without_a_fingerprint_is_an_older_one_and_loads(damaged, checkpoint):
  settings = json.loads((damaged / "config.json").read_text())
  assert settings.pop("fingerprint") == load_model(checkpoint).fingerprint.hex()
  (damaged / "config.json").write_text(json.dumps(settings))
  assert load_model(damaged).fingerprint == load_model(checkpoint).fingerprint
