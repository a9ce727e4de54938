"""Tests of eval.py with --refine and --skip: separate curves, report entries and cached results."""
import json
import re

import numpy as np
import pytest
from helpers.fake_codec import FakeCodec, SingleRateCodec, bits_of
from test_eval import plots_that_are_drawn  # noqa: F401 (a fixture)

import mlic_jax
from mlic_jax.__main__ import main_of_one_command
from mlic_jax.data.image_io import save_image
from mlic_jax.evaluation import bit_maps, plots

rows, columns = np.mgrid[:70, :100][..., None] / 9
IMAGE = np.uint8(127 + 100 * np.sin(rows + [0, 1, 2]) * np.cos(columns * [1, 0.7, 1.3]))


@pytest.fixture(name="run")
def run_eval(tmp_path, monkeypatch, capsys, request):
  """eval.py on an image into tmp_path / "out": (exit status, stderr, the encodes that were made)."""
  (tmp_path / "photos").mkdir()
  save_image(tmp_path / "photos" / "a.png", IMAGE)
  if "drawn" not in request.fixturenames:
    monkeypatch.setattr(plots, "save_rd_plot", lambda path, *_: path.touch())

  def run(*arguments, codec=FakeCodec):
    encoded = []

    class Counting(codec):
      def encode_with_reconstruction(self, image, quality):
        encoded.append((quality or 0) + (0.5 if self.options.refine else 0))
        return super().encode_with_reconstruction(image, quality)

    monkeypatch.setitem(vars(mlic_jax), "Codec", Counting)
    monkeypatch.setattr(bit_maps, "bits_map", lambda codec, *image: bits_of(*image))
    given = ["--data", tmp_path / "photos", "--out", tmp_path / "out", "--baselines", "jpeg", *arguments]
    status = main_of_one_command("eval", "eval.py", [str(argument) for argument in given])
    return status, capsys.readouterr().err, encoded
  return run


def read(tmp_path):
  return json.loads((tmp_path / "out" / "results.json").read_text())


def test_every_checkpoint_is_a_curve_as_it_is_and_one_refined_and_the_results_say_so(drawn, run, tmp_path):
  assert run("--ckpt", "x", "--refine", "50s", "--lmbda", "0.1", "--anchor", "fake", "--report-images", 0)[0] == 0
  found = read(tmp_path)
  assert found["refine"] == "50s"
  entries = {(entry["name"], entry["quality"]): entry for entry in found["checkpoints"]}
  name = "fake, refined 50s for 0.1"
  assert list(entries) == [("fake", q) for q in range(1, 7)] + [(name, q) for q in range(1, 7)]
  assert entries["fake", 3]["refine"] is None
  assert entries[name, 3]["refine"] == {"plain": "fake", "budget": "50s", "distortion": "mse", "lmbda": 0.1}
  assert entries[name, 3]["mean"]["bytes"] > entries["fake", 3]["mean"]["bytes"]
  assert [curve["name"] for curve in found["curves"] if curve["metric"] == "psnr"] == ["fake", name, "JPEG 4:2:0"]
  assert {"curve": name, "anchor": "fake"}.items() <= found["bd_rates"][0].items()
  assert re.search("refined 50s for 0.1</text>", (tmp_path / "out" / "rd.svg").read_text())


def test_what_is_coded_without_some_elements_is_a_curve_of_its_own_and_refined_another(run, tmp_path):
  assert run("--ckpt", "x", "--skip", 0.2, "--refine", 9, "--qualities", "1,2", "--report-images", 0)[0] == 0
  found = read(tmp_path)
  without = "fake, without scales up to 0.2"
  entries = {(entry["name"], entry["quality"]): entry for entry in found["checkpoints"]}
  assert found["skip"] == 0.2 and list(entries) == [(name, q) for name in ("fake", without, f"{without}, refined 9")
                                                    for q in (1, 2)]
  assert [entry["skip"] for entry in found["checkpoints"]] == [None, None, 0.2, 0.2, 0.2, 0.2]
  assert entries[without, 2]["mean"]["bytes"] < entries["fake", 2]["mean"]["bytes"]
  assert entries[f"{without}, refined 9", 2]["refine"]["plain"] == without
  assert run("--ckpt", "x", "--qualities", "1,2", "--report-images", 0, "--resume")[2] == []
  assert run("--ckpt", "x", "--qualities", "1,2", "--report-images", 0, "--resume", "--skip", 0.25)[2] == [1, 1, 2]


def test_single_rates_of_a_family_are_one_curve_refined_and_without_elements_too(run, tmp_path):
  arguments = "--ckpt", "s_q20", "s_q40", "--skip", 0.2, "--refine", 100, "--report-images", 0
  assert run(*arguments, codec=SingleRateCodec)[0] == 0
  curves = [(curve["name"], len(curve["bpp"])) for curve in read(tmp_path)["curves"] if curve["metric"] == "psnr"]
  without = "s, without scales up to 0.2"
  assert curves[:3] == [("s", 2), (without, 2), (f"{without}, refined 100", 2)]


@pytest.mark.parametrize("scale, message", [
    ("0.01", "skip=0.01; wanted a scale of at least 0.11 and below 256"),
    ("-1", "wanted a number above 0")])
def test_a_scale_that_leaves_nothing_out_is_one_line(tiny_checkpoint, tmp_path, capsys, scale, message):
  arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out"), f"--skip={scale}"]
  assert main_of_one_command("eval", "eval.py", arguments) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_a_resumed_evaluation_mixes_no_plain_and_refined_rows(run, tmp_path):
  arguments = "--ckpt", "x", "--qualities", "1,2", "--report-images", 0
  bytes_of = lambda: [(entry["name"], entry["mean"]["bytes"]) for entry in read(tmp_path)["checkpoints"]]
  assert run(*arguments)[2] == [1, 1, 2]                           # the first compiles
  plain = bytes_of()
  assert run(*arguments, "--resume", "--refine", 100)[2] == [1.5, 1.5, 2.5]
  both = bytes_of()
  assert both[:2] == plain and [name for name, _ in both[2:]] == ["fake, refined 100"] * 2 and both[2][1] > both[0][1]
  assert run(*arguments, "--resume", "--refine", 100)[2] == [] and bytes_of() == both
  assert run(*arguments, "--resume", "--refine", 200)[2] == [1.5, 1.5, 2.5]
  assert run(*arguments, "--resume")[2] == [] and bytes_of() == plain


@pytest.mark.parametrize("codec, ckpt, number", [(FakeCodec, ["x"], 12), (SingleRateCodec, ["s_q20", "s_q40"], 4)])
def test_the_page_shows_plain_and_refined_images_and_bits_in_one_scale(run, tmp_path, codec, ckpt, number):
  assert run("--ckpt", *ckpt, "--refine", 100, codec=codec)[0] == 0
  page = (tmp_path / "out" / "report.html").read_text()
  assert '<option value="plain">without latent optimization</option>' in page
  records = read(tmp_path)["pictures"]
  assert len(records) == number
  for record in records:
    if record["plain"]:
      key = lambda each: (each["checkpoint"], each["quality"])
      plain, = (each for each in records if key(each) == (record["plain"], record["quality"]))
      assert record["checkpoint"].startswith(f"{record['plain']}, refined 100") and plain["plain"] is None
      assert record["bits_scale_bpp"] == plain["bits_scale_bpp"] and record["reconstruction"] != plain["reconstruction"]
  assert run("--ckpt", *ckpt, codec=codec)[0] == 0
  assert 'value="plain"' not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("arguments, line", [
    (["--lmbda", "0.1"], "--lmbda has no effect without --refine"),
    (["--refine", "-3"], "refine='-3'; wanted a number of steps"), (["--refine", "0s"], "refine='0s'"),
    (["--refine", "3", "--lmbda", "0"], "'0'; wanted a number above 0")])
def test_what_cannot_be_refined_is_refused_in_one_line(run, tmp_path, arguments, line):
  status, err, encoded = run("--ckpt", "x", *arguments)
  assert status == 2 and line in err and err.count("\n") == 1 and not encoded and not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_refined_is_refused_before_the_work(run, tmp_path):
  save_image(tmp_path / "photos" / "b.png", IMAGE[:13])
  status, err, encoded = run("--ckpt", "x", "--refine", "3")
  assert (status, encoded) == (2, []) and "13 lines cannot be refined" in err
