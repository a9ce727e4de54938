"""Tests of complexity: the figures of the authors' model, and refusals of invalid configs."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlic_jax.__main__ import main
from mlic_jax.config import CodecConfig
from mlic_jax.interop.reference_weights import infer_config
from mlic_jax.model.complexity import describe

NANO_BUT = "from configs import nano\ndef get_config():\n  c = nano.get_config()\n  c.model.{}\n  return c"
GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


def test_the_figures_of_mlic_plus_plus_are_those_of_the_authors_model():
  parts = {part.name: part for part in describe(CodecConfig(), 512, 768)}
  assert sum(part.parameters for part in parts.values()) == 83_501_408
  kmacs = dict(g_a=359.0, h_a=4.2, z_prior=0.0, h_s=21.3, local_attention=2.9, global_intra_linear=2.6,
               global_inter_linear=18.0, channel=22.7, entropy=31.4, lrp=101.2, g_s=563.6)
  assert {name: round(part.kmacs, 1) for name, part in parts.items()} == kmacs
  assert round(sum(part.kmacs for part in parts.values()), 1) == 1126.9


def test_live_parameters_are_those_that_the_authors_code_has():
  """Of a model with another N, M and number of slices than MLIC++ has, which is above."""
  manifest = [entry for entry in json.loads((GOLDEN / "manifest_B.json").read_text()) if entry["kind"] == "parameter"]
  config = infer_config({entry["name"]: SimpleNamespace(shape=entry["shape"]) for entry in manifest})
  assert sum(part.parameters for part in describe(config)) == sum(math.prod(entry["shape"]) for entry in manifest)


def test_gains_count_and_an_absent_part_does_not_appear(tmp_path, capsys):
  (tmp_path / "small.py").write_text(
      "import ml_collections\n"
      "def get_config(rates):\n"
      "  return ml_collections.ConfigDict(dict(model=dict(N=8, M=16, num_slices=2, widths=(4, 4, 4), contexts=(),\n"
      "      entropy_widths=(5,), lrp_widths=(), num_rates=int(rates))))\n")
  assert main(["describe", "--config", f"{tmp_path / 'small.py'}:3", "--height", "64", "--width", "128"]) == 0
  cells = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
  table = {name.strip(): (int(size.replace(",", "")), float(kmacs)) for _, name, size, kmacs, _ in cells}
  assert list(table) == ["g_a", "h_a", "z_prior", "h_s", "entropy", "gains", "g_s", "total", "decoder"]
  assert table["gains"] == (2 * 3 * 16, 0.0)
  per_pass = 32 * 5 + 5 + 5 * 16 + 16  # no contexts: hyper -> 5 -> mean and scale of 8 channels
  assert table["entropy"] == (2 * 2 * per_pass, 0.0)  # 960 multiplications a position of y are few
  # h_s: z at 1/4096 of the positions of the image, and twice as fine after each of two sub-pixel convolutions.
  macs = 9 * (8 * 16 + 16 * 4 * 16 + 4 * (16 * 24 + 24 * 4 * 24) + 16 * 24 * 32)
  assert table["h_s"][1] == round(macs / 64**2 / 1000, 1)


@pytest.mark.parametrize("text, message", [
    (None, "no such config file"),
    ("get_config = 1 / 0", "ZeroDivisionError"),
    ("a = 1", "wanted a function get_config()"),
    ("import ml_collections\nget_config = lambda: ml_collections.ConfigDict()", "lacks the field 'model'"),
    (NANO_BUT.format("M = 7"), "M=7"),
    (NANO_BUT.format("contexts = ('chanel',)"), "the nearest is 'channel'")])
def test_a_bad_configuration_file_is_one_line_and_status_2(tmp_path, capsys, text, message):
  path = tmp_path / "bad.py"
  if text is not None:
    path.write_text(text)
  assert main(["describe", "--config", str(path)]) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and "bad.py" in err and message in err


def test_a_bad_size_is_one_line_and_status_2(capsys):
  assert main(["describe", "--config", "configs/nano.py", "--height", "0"]) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and "--height" in err
