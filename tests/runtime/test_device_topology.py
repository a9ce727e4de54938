"""Tests of TPU topologies without their compiler, and of the interpretation of its results."""
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from mlic_jax.__main__ import main
from mlic_jax.commands import estimate
from mlic_jax.runtime import device_topology

GIB = 2**30


@pytest.mark.parametrize("fixed, of_one, room", [(2.0, 1.1, 15.75), (0.1, 0.2, 15.75), (1.0, 14.75, 15.75),
                                                 (3.0, 5.0, 7.9), (0.0, 1.0, 64.0)])
def test_the_largest_batch_fits_and_one_more_does_not(fixed, of_one, room):
  calls = []

  def takes(batch):
    calls.append(batch)
    return fixed + of_one * batch

  found, tried = device_topology.largest_batch(takes, room)
  assert (fixed + of_one * found <= room or found == 0) and fixed + of_one * (found + 1) > room
  assert len(calls) == len(set(calls)) <= 6 and list(tried) == calls


@pytest.mark.parametrize("largest", [1, 2, 3, 17, 100])
def test_the_largest_batch_is_found_where_memory_goes_in_steps(largest):
  takes = lambda batch: batch // 4 * 4 + (101 if batch > largest else 0)
  assert device_topology.largest_batch(takes, 100)[0] == largest


def test_memory_is_the_peak_and_its_parts_are_listed():
  memory = SimpleNamespace(argument_size_in_bytes=10, temp_size_in_bytes=20, output_size_in_bytes=12,
                           alias_size_in_bytes=9, generated_code_size_in_bytes=1, peak_memory_in_bytes=25)
  compiled = SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: "ENTRY %main () -> f32[] {\n}\n",
                             cost_analysis=lambda: {"flops": 3.0, "bytes accessed": 4.0})
  found = device_topology.Footprint.of(compiled)
  assert found[:6] == (10, 20, 12, 9, 1, 25) and (found.flops, found.accessed) == (3.0, 4.0)


@pytest.mark.parametrize("said", [
    "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.00G of 15.75G hbm. Exceeded hbm "
    "capacity by 2.25G.",
    "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (18.00G) "
    "exceeds available HBM (15.75G). HLO module: jit__lambda."])
def test_a_program_that_does_not_fit_is_one_line_with_needed_and_available_memory(said):
  def refuse():
    raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

  message = "^it takes 18.00 GiB on a chip, where there are 15.75 GiB$"
  with pytest.raises(device_topology.DoesNotFit, match=message) as refusal:
    device_topology.compiled(SimpleNamespace(compile=refuse))
  assert refusal.value.takes == 18 * GIB and refusal.value.there_is == 15.75 * GIB


@pytest.mark.parametrize("cycles", [0, 2_500_000])
def test_a_report_names_its_program_and_says_what_the_compiler_said(monkeypatch, capsys, cycles):
  monkeypatch.setattr("importlib.metadata.version", lambda package: "1.0")
  found = device_topology.Footprint(arguments=2 * GIB, temporaries=3 * GIB, output=2 * GIB, aliased=GIB, code=0,
                                    peak=5 * GIB, flops=197e9, accessed=819e9, cycles=cycles,
                                    collectives={"all-reduce": (2, 5_000_000)})
  estimate._report("a step", found, 61.0, "v5e:2x4", 16 * GIB)
  said = capsys.readouterr().out
  assert said.startswith("a step, on each chip\n  peak memory     5.00 GiB of 16.00 GiB; total 2.00 ")
  assert "2 all-reduce of 5.0 MB" in said and "1000.00 ms: 1.00 ms at 197 TFLOP/s" in said
  assert ("2.5 million cycles" in said) == (cycles > 0)


def test_what_compiles_fits_also_where_it_is_said_to_take_more_than_there_is(monkeypatch, capsys):
  def compiled(lower, name, measure):
    pictures = int(name.split()[0])
    if pictures > 7:
      raise device_topology.DoesNotFit(20 * GIB, 16 * GIB)
    return device_topology.Footprint(0, 0, 0, 0, 0, 3 * GIB * pictures, 1.0, 1.0, 0, {}), 1.0, ""

  monkeypatch.setattr(estimate, "_compiled", compiled)
  args = SimpleNamespace(what="train", config="nano", topology="v5e:2x4")
  config = ConfigDict(dict(batch_size=8, crop_size=64, accumulate_steps=1))
  estimate._find_batch(args, config, None, range(8), 16 * GIB, measure=None)
  said = capsys.readouterr().out.splitlines()
  assert said[-1].endswith("7 images on a chip, 56 on v5e:2x4")
  assert any("21.00 GiB, compiled" in line for line in said)


@pytest.mark.parametrize("arguments, message", [
    (("--topology", "v5e:2x4"), "the compiler for TPUs is not installed: pip install 'jax[tpu]'"),
    (("--topology", "v9e:2x4"), "--topology=v9e:2x4: no chip 'v9e'; wanted one of v4, v5e, v5p, v6e"),
    (("--topology", "v5e:2x4", "--what", "encode", "--find-batch"), "--what=encode codes one image at a time"),
    (("--topology", "v5e:2x4", "--batch-size", "8", "--find-batch"), "wanted one of them")])
def test_what_estimate_cannot_do_is_one_line_and_status_2(monkeypatch, capsys, arguments, message):
  monkeypatch.setattr(device_topology.importlib.util, "find_spec", lambda name: None)
  assert main(["estimate", "--config", "nano", *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
