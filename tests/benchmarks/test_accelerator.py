"""Tests that the check for accelerators runs on CPU with small sizes and writes its results."""
import dataclasses
import functools
import json

import jax
import pytest
from conftest import random_variables
from helpers.light_codec import LIGHT
from helpers.linear_stub import StandIn

from benchmarks import accelerator
from mlic_jax.coding.checkpoint_io import load_model, save_model
from mlic_jax.training import pmap_programs

SMALL = dataclasses.replace(LIGHT, contexts=(), num_rates=0)


@pytest.fixture(name="check")
def run_check(tmp_path, monkeypatch):
  """check(*parts) -> the results of these parts of the benchmark, for a model that compiles fast."""
  save_model(tmp_path / "small", SMALL, random_variables(SMALL))
  monkeypatch.setattr(accelerator, "load_model", functools.partial(load_model, allow_custom_modules=True))

  def check(*parts: str) -> dict:
    file = tmp_path / "found.json"
    accelerator.main(["--small", "--minutes", "60", "--ckpt", str(tmp_path / "small"), "--json", str(file),
                      "--only", *parts])
    return json.loads(file.read_text())
  return check


def test_a_cpu_decodes_what_itself_has_coded_and_the_times_are_those_of_all_parts(check, monkeypatch):
  monkeypatch.setattr(accelerator, "SMALL", SMALL.to_dict())
  monkeypatch.setattr(accelerator, "kmacs", lambda codec, side: 1.0)   # tests/model/test_complexity.py counts them
  for module in accelerator, pmap_programs:  # the steps that are timed
    monkeypatch.setattr(module, "build", StandIn)
  found = check("across", "training", "codec")
  assert found["platform"] == "cpu" and found["peak_flops"] is None and "parity" not in found
  for way in ("cpu to device", "device to cpu"):  # the same device, and bit for bit the same
    across = found["across"][way]
    assert across["portable_decode"] == across["images"] == 1 and across["share_of_margin"] == 0
    assert across["files_decoded"] == 1 and across["levels_off_in_files"] == 0
  (row,) = found["training"]
  assert row["config"] == "nano" and row["steps_per_second"] > 0 and row["share_of_peak"] is None
  (times,) = found["codec"]
  assert times["encode_seconds"] > 0 and times["decode_seconds"] > 0


@pytest.mark.slow  # tests/model/test_reference_parity.py holds CPUs to the same arrays
def test_a_cpu_is_near_the_recorded_arrays(check):
  assert all(value < 1e-4 for case in check("parity")["parity"].values() for value in case.values())


def test_training_has_a_row_for_each_config_precision_and_batch_that_is_named(monkeypatch, tmp_path):
  timed = []

  def timed_steps(config, count):
    timed.append((len(config.model["widths"]), config.bfloat16_transforms, config.batch_size, config.crop_size))
    return dict(steps_per_second=1.0, crops_per_second=config.batch_size, share_of_peak=None)
  monkeypatch.setattr(accelerator, "timed_steps", timed_steps)
  file = tmp_path / "found.json"
  accelerator.main(["--json", str(file), "--only", "training", "--configs", "nano", "--batches", "8", "32",
                    "--crop", "256"])
  assert timed == [(2, False, 8, 256), (2, False, 32, 256), (2, True, 8, 256), (2, True, 32, 256)]
  rows = json.loads(file.read_text())["training"]
  assert [(row["config"], row["transforms"], row["batch"]) for row in rows] == [
    ("nano", "float32", 8), ("nano", "float32", 32), ("nano", "bfloat16", 8), ("nano", "bfloat16", 32)]


def test_training_doubles_the_batch_until_it_does_not_fit(monkeypatch, tmp_path):
  def timed_steps(config, count):
    if config.batch_size > 8:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    return dict(steps_per_second=1.0, crops_per_second=config.batch_size, share_of_peak=None)
  monkeypatch.setattr(accelerator, "timed_steps", timed_steps)
  file = tmp_path / "found.json"
  accelerator.main(["--json", str(file), "--only", "training", "--configs", "nano"])
  rows = json.loads(file.read_text())["training"]
  assert [(row["transforms"], row["batch"], "full" in row) for row in rows] == [
    ("float32", 4, False), ("float32", 8, False), ("float32", 16, True),
    ("bfloat16", 4, False), ("bfloat16", 8, False), ("bfloat16", 16, True)]
