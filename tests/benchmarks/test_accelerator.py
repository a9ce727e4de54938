"""Tests that the check for accelerators runs on CPU with small sizes and writes its results."""
import json

import jax
import pytest

from benchmarks import accelerator


@pytest.fixture(name="check")
def run_check(tiny_checkpoint, tmp_path):
  def check(*parts: str) -> dict:
    file = tmp_path / "found.json"
    accelerator.main(["--small", "--minutes", "60", "--ckpt", str(tiny_checkpoint), "--json", str(file),
                      "--only", *parts])
    return json.loads(file.read_text())
  jax.config.update("jax_disable_most_optimizations", True)  # compiles in a third of the time
  yield check
  jax.config.update("jax_disable_most_optimizations", False)


def test_a_cpu_decodes_what_itself_has_coded_and_the_times_are_those_of_all_parts(check, monkeypatch):
  monkeypatch.setattr(accelerator, "SMALL", dict(accelerator.SMALL, contexts=(), lrp_widths=()))
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
