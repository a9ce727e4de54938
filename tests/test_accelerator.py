"""The check for accelerators runs, here on CPU and small, and writes what it found."""
import json

from benchmarks import accelerator


def test_the_check_for_accelerators_finds_a_cpu_to_be_right(tiny_checkpoint, tmp_path, monkeypatch):
  monkeypatch.setattr(accelerator, "SMALL", dict(accelerator.SMALL, contexts=(), lrp_widths=()))
  file = tmp_path / "found.json"
  accelerator.main(["--small", "--minutes", "60", "--ckpt", str(tiny_checkpoint), "--json", str(file)])
  found = json.loads(file.read_text())
  assert found["platform"] == "cpu" and found["peak_flops"] is None
  assert all(value < 1e-4 for of_case in found["parity"].values() for value in of_case.values())
  for way in ("cpu to device", "device to cpu"):  # the same device, and bit for bit the same
    across = found["across"][way]
    assert across["portable_decode"] == across["pictures"] == 1 and across["share_of_kept_distance"] == 0
    assert across["files_decoded"] == 1 and across["levels_off_in_files"] == 0
  (row,) = found["training"]
  assert row["config"] == "nano" and row["steps_per_second"] > 0 and row["share_of_peak"] is None
  (times,) = found["codec"]
  assert times["encode_seconds"] > 0 and times["decode_seconds"] > 0
