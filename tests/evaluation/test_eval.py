"""Tests of eval.py: tables and files, user errors, and --resume.

The codec here is a stand-in with the interface of mlic_jax.Codec that stores JPEG, so that results can be checked by
hand.
"""
import csv
import json

import numpy as np
import pytest
from helpers.fake_codec import CONFIG, CoderIsNotToBeUsed, FakeCodec, SingleRateCodec, WrongDecoder, bits_of

import mlic_jax
from mlic_jax.__main__ import main_of_one_command
from mlic_jax.coding import rangecoder
from mlic_jax.commands import codec_io
from mlic_jax.data.image_io import save_image
from mlic_jax.evaluation import baselines, bit_maps, image_metrics, plots
from mlic_jax.folder_lock import FolderLock

rows, columns = np.mgrid[:70, :100][..., None] / 9
IMAGE = np.uint8(127 + 100 * np.sin(rows + [0, 1, 2]) * np.cos(columns * [1, 0.7, 1.3]))
FIGURES = {"bytes", "bpp", "bpp_estimated", "psnr", "ms_ssim", "encode_s", "decode_s"}


@pytest.fixture(name="folder")
def two_photographs(tmp_path):
  (tmp_path / "photos").mkdir()
  save_image(tmp_path / "photos" / "a.png", IMAGE)
  save_image(tmp_path / "photos" / "b.png", IMAGE[:40, ::-1])
  return tmp_path / "photos"


@pytest.fixture(name="drawn")
def plots_that_are_drawn():
  """Has `run` draw the plots, which are empty files in other tests."""


@pytest.fixture(name="run")
def run_eval(folder, tmp_path, monkeypatch, capsys, request):
  """eval.py on `folder` into tmp_path / "out": (exit status, stdout, stderr without what is said of compilers)."""
  monkeypatch.setattr(codec_io, "complain", lambda line: None)
  if "drawn" not in request.fixturenames:
    monkeypatch.setattr(plots, "save_rd_plot", lambda path, *_: path.touch())

  def run(*arguments, codec=FakeCodec):
    monkeypatch.setitem(vars(mlic_jax), "Codec", codec)
    monkeypatch.setattr(bit_maps, "bits_map", lambda codec, *image: bits_of(*image))
    given = ["--data", folder, "--out", tmp_path / "out", *arguments]
    status = main_of_one_command("eval", "eval.py", [str(argument) for argument in given])
    return status, *capsys.readouterr()
  return run


@pytest.fixture(name="results")
def read_results(tmp_path):
  return lambda: json.loads((tmp_path / "out" / "results.json").read_text())


def test_what_is_compiled_for_the_first_image_is_said(run, tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(codec_io, "complain", said.append)
  monkeypatch.setenv("MLIC_JAX_CACHE", str(tmp_path / "cache"))  # where nothing is known of earlier times
  assert run("--ckpt", "x", "--qualities", "1", "--baselines", "none")[0] == 0
  assert said == ["compiling for 100x70 pixels: some seconds to half a minute on a CPU the first time"]


def test_results_json_has_the_promised_fields_one_entry_per_quality(drawn, run, results, tmp_path):
  status, _, err = run("--ckpt", "x")
  assert status == 0 and err == ""
  assert [entry["quality"] for entry in results()["checkpoints"]] == [1, 2, 3, 4, 5, 6]
  for entry in results()["checkpoints"]:
    assert entry["name"] == "fake" and entry["config"] == CONFIG.to_dict()
    assert [image["name"] for image in entry["images"]] == ["a.png", "b.png"]
    assert all(set(image) >= FIGURES | {"name", "height", "width"} for image in entry["images"])
    assert set(entry["mean"]) >= FIGURES
    assert entry["mean"]["bpp"] == pytest.approx(np.mean([image["bpp"] for image in entry["images"]]))
  assert {entry["name"] for entry in results()["baselines"]} == {"JPEG 4:2:0", "WebP"}
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
      "compressai", "measurements.jsonl", "pictures", "rd.png", "rd.svg", "report.html", "results.csv", "results.json"]


def test_results_say_which_range_coder_was_used(run, results, monkeypatch):
  for installed, arguments, coder in (("numba", [], "numba"), ("numba tensorflow_compression_ops", [], "tfc"),
                                      ("numba tensorflow_compression_ops", ["--coder", "numba"], "numba"),
                                      ("numba", ["--estimate"], None)):
    with monkeypatch.context() as patch:
      patch.setattr(rangecoder.importlib.util, "find_spec", lambda name: name in installed.split() or None)
      patch.setattr(rangecoder, "load_in_background", lambda coder: None)
      assert run("--ckpt", "x", "--limit", 1, "--baselines", "none", "--report-images", 0, *arguments)[0] == 0
    assert results()["coder"] == coder


def test_a_range_coder_is_loaded_only_for_checkpoints_that_exist(monkeypatch, tmp_path, capsys):
  """The program ends when the import of the coder has ended, which takes seconds."""
  loaded = []
  monkeypatch.setattr(rangecoder, "load_in_background", loaded.append)
  (tmp_path / "empty").mkdir()
  for ckpt, problem in ("nowhere", "no such directory"), ("empty", "is no model directory"):
    assert main_of_one_command("eval", "eval.py", ["--ckpt", str(tmp_path / ckpt), "--coder", "numba"]) == 2
    assert problem in capsys.readouterr().err
    assert loaded == (["numba"] if ckpt == "empty" else [])


def test_a_codec_that_is_jpeg_gains_nothing_on_jpeg(run, results):
  _, out, _ = run("--ckpt", "x")
  gains = {row["curve"]: row["percent"] for row in results()["bd_rates"]}
  assert abs(gains["fake"]) < 3 and gains["WebP"] < -3
  assert "BD-rate against JPEG 4:2:0" in out and "Times exclude compilation" in out
  for heading in ["quality", "bpp", "estimated", "PSNR", "MS-SSIM", "encode s", "decode s", "JPEG", "WebP"]:
    assert heading in out


def test_the_table_has_a_row_per_image_and_quality(run, results, tmp_path):
  run("--ckpt", "x", "--baselines", "jpeg")
  with open(tmp_path / "out" / "results.csv", newline="") as file:
    table = list(csv.DictReader(file))
  assert len(table) == 2 * (6 + len(baselines.JPEG.qualities))
  first, image = table[0], results()["checkpoints"][0]["images"][0]
  assert (first["kind"], first["codec"], first["quality"]) == ("checkpoint", "fake", "1")
  assert float(first["psnr"]) == image["psnr"] and first["ms_ssim"] == ""


def test_the_files_for_compressai_hold_the_means_rising_in_rate(run, results, tmp_path):
  run("--ckpt", "x")
  written = json.loads((tmp_path / "out" / "compressai" / "fake.json").read_text())
  means = [entry["mean"] for entry in results()["checkpoints"]]
  assert set(written) == {"name", "description", "results"}
  assert written["results"] == {"bpp": [mean["bpp"] for mean in means], "psnr-rgb": [mean["psnr"] for mean in means]}
  assert (tmp_path / "out" / "compressai" / "jpeg-4-2-0.json").exists()


def test_the_cost_has_time_with_and_without_compilation_and_the_size(run, results):
  run("--ckpt", "x")
  cost, = results()["costs"]
  assert cost["parameters"] > cost["parameters_decoder"] > 0 and cost["kmacs_per_pixel"] > 0
  assert cost["encode_s"] > 0 and cost["first_run"]["decode_s"] > 0 and cost["peak_memory_bytes"] > 2**20
  images = [image for entry in results()["checkpoints"] for image in entry["images"]]
  pixels = sum(image["height"] * image["width"] for image in images)
  for field in "encode_s", "decode_s":
    assert cost[f"{field}_per_megapixel"] == pytest.approx(1e6 * sum(image[field] for image in images) / pixels)
  assert cost["device"]


def test_published_curves_stand_beside_the_others_and_can_be_the_anchor(run, results):
  status, out, _ = run("--ckpt", "x", "--published", "kodak:MLIC++,VTM-17.0,JPEG", "--anchor", "vtm-17.0",
                       "--bd-method", "cubic")
  assert status == 0
  by_curve = {row["curve"]: row for row in results()["bd_rates"]}
  assert by_curve["MLIC++"]["percent"] == pytest.approx(-13.41, abs=0.02)
  assert by_curve["MLIC++"]["kind"] == "published" and by_curve["MLIC++"]["anchor"] == "VTM-17.0"
  assert {"fake", "WebP", "JPEG 4:2:0", "JPEG"} <= set(by_curve)
  assert "BD-rate against VTM-17.0 (cubic)" in out and "do not compare them" in out   # 2 images are not Kodak


def without_times(results):
  """results.json without fields that differ between runs."""
  if isinstance(results, dict):
    return {key: without_times(value) for key, value in results.items()
            if key not in ("encode_s", "decode_s", "encode_s_per_megapixel", "decode_s_per_megapixel", "first_run",
                           "peak_memory_bytes")}
  return [without_times(each) for each in results] if isinstance(results, list) else results


def test_an_interrupted_run_resumed_gives_what_an_uninterrupted_one_gives(run, results, monkeypatch, tmp_path):
  class Interrupted(FakeCodec):
    def encode_with_reconstruction(self, image, quality):
      if image.shape[0] == 40 and quality == 2:          # in the midst of the second image
        raise KeyboardInterrupt
      return super().encode_with_reconstruction(image, quality)

  class OnlyTheSecond(FakeCodec):
    def encode_with_reconstruction(self, image, quality):
      assert image.shape[0] == 40
      return super().encode_with_reconstruction(image, quality)

  run("--ckpt", "x")
  whole = results()
  status, _, err = run("--ckpt", "x", codec=Interrupted)
  assert status == 130 and "--resume continues" in err
  with monkeypatch.context() as patch:
    patch.setattr(image_metrics, "measure_baseline", lambda *_: pytest.fail("baselines are measured again"))
    status, *_ = run("--ckpt", "x", "--resume", codec=OnlyTheSecond)
  assert status == 0 and without_times(results()) == without_times(whole)


def test_without_resume_everything_is_measured_again(run, results):
  run("--ckpt", "x", "--limit", 1)
  calls = []

  class Counting(FakeCodec):
    def encode_with_reconstruction(self, image, quality):
      calls.append(quality)
      return super().encode_with_reconstruction(image, quality)

  run("--ckpt", "x", "--limit", 1, codec=Counting)
  assert calls == [1, 1, 2, 3, 4, 5, 6]


def test_workers_change_nothing_but_times(run, results):
  run("--ckpt", "x", "--qualities", "1,3", "--baselines", "jpeg")
  alone = results()
  status, *_ = run("--ckpt", "x", "--qualities", "1,3", "--baselines", "jpeg", "--workers", "1")
  assert status == 0 and without_times(results()) == without_times(alone)


def test_qualities_and_limit_choose_and_fractions_are_allowed(run, results):
  status, *_ = run("--ckpt", "x", "--qualities", "6,1,2.5", "--limit", 1)
  assert status == 0
  assert [entry["quality"] for entry in results()["checkpoints"]] == [1, 2.5, 6]
  assert [len(entry["images"]) for entry in results()["checkpoints"]] == [1, 1, 1]


def test_estimating_neither_codes_nor_claims_bytes(run, results):
  status, out, _ = run("--ckpt", "x", "--estimate", codec=CoderIsNotToBeUsed)
  assert status == 0
  mean = results()["checkpoints"][0]["mean"]
  assert (mean["bytes"], mean["bpp"], mean["encode_s"]) == (None,) * 3 and mean["bpp_estimated"] > 0
  assert "encode s" not in out and "complete files" not in out


def test_single_rate_checkpoints_of_one_family_are_one_curve(run, results):
  status, *_ = run("--ckpt", "mlic_q10", "mlic_q50", "mlic_q30", codec=SingleRateCodec)
  assert status == 0
  assert [(entry["name"], entry["quality"]) for entry in results()["checkpoints"]] == [
      ("mlic_q10", None), ("mlic_q50", None), ("mlic_q30", None)]
  curve, = (curve for curve in results()["curves"] if curve["kind"] == "checkpoint")
  assert curve["name"] == "mlic" and len(curve["bpp"]) == 3 and curve["bpp"] == sorted(curve["bpp"])
  assert abs(next(row["percent"] for row in results()["bd_rates"] if row["curve"] == "mlic")) < 3


def test_a_single_rate_alone_has_no_bd_rate(run, results):
  _, out, _ = run("--ckpt", "x", codec=SingleRateCodec)
  assert results()["bd_rates"][0]["percent"] is None and "a curve needs two points" in out


def test_what_the_user_can_mend_is_one_line_and_status_2_and_nothing_written(run, folder, tmp_path):
  (tmp_path / "empty").mkdir()
  for arguments, message in [
      (["--ckpt", "missing"], "missing: no such directory"),
      (["--ckpt", "x", "--data", tmp_path / "gone"], "gone: no such folder"),
      (["--ckpt", "x", "--data", tmp_path / "empty"], "holds no image"),
      (["--ckpt", "x", "--qualities", "7"], "7; fake has qualities from 1 to 6"),
      (["--ckpt", "x", "--qualities", "best"], "'best'; wanted numbers"),
      (["--ckpt", "x", "--limit", "0"], "'0'; wanted a positive integer"),
      (["--ckpt", "x", "--output", "x"], "unrecognized arguments: --output"),
      (["--ckpt", "x", "--baselines", "gif"], "no baseline 'gif'; wanted all, none, or some of jpeg"),
      (["--ckpt", "x", "--published", "imagenet"], "on 'imagenet'; wanted one of"),
      (["--ckpt", "x", "--published", "kodak:H.264"], "no published curve 'H.264' on kodak"),
      (["--ckpt", "x", "--anchor", "VTM-17.0"], "no curve 'VTM-17.0'; wanted one of fake, JPEG 4:2:0, WebP"),
      (["--ckpt", "x", "--bd-method", "spline"], "invalid choice: 'spline'"),
      (["--ckpt", "x", "--workers", "-1"], "'-1'; wanted an integer of at least 0"),
      (["--ckpt", "x", "--out", folder / "a.png"], "is not a writable folder"),
      ([], "required: --ckpt")]:
    status, stdout, stderr = run(*arguments)
    assert status == 2 and message in stderr and stderr.count("\n") == 1 and not stdout, (arguments, stderr)
    assert not (tmp_path / "out").exists()


def test_qualities_of_a_single_rate_checkpoint_are_refused(run):
  status, _, stderr = run("--ckpt", "x", "--qualities", "2", codec=SingleRateCodec)
  assert status == 2 and "x has a single rate" in stderr


def test_a_broken_image_among_good_ones_is_named_and_nothing_is_written(run, folder, tmp_path):
  (folder / "ab.png").write_bytes((folder / "a.png").read_bytes()[:200])
  status, _, stderr = run("--ckpt", "x")
  assert status == 2 and "ab.png: cannot be read as an image" in stderr and stderr.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_a_wrong_decoder_ends_the_run_with_status_1_and_the_name_of_the_image(run, tmp_path):
  status, _, stderr = run("--ckpt", "x", codec=WrongDecoder)
  assert status == 1 and stderr.startswith("eval.py: a.png at quality 1: ") and stderr.count("\n") == 1
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["measurements.jsonl"]   # of the baselines


def test_a_second_evaluation_into_a_folder_is_refused_and_changes_nothing(run, tmp_path):
  with FolderLock(tmp_path / "out", "evaluation.lock", "evaluation", "--out"):
    (tmp_path / "out" / "measurements.jsonl").write_text("of the first\n")
    for arguments in ["--ckpt", "x"], ["--ckpt", "x", "--resume"]:
      status, stdout, stderr = run(*arguments)
      assert status == 2 and not stdout and stderr.count("\n") == 1
      assert "out is in use by another evaluation (host " in stderr and "wanted another --out" in stderr
    assert (tmp_path / "out" / "measurements.jsonl").read_text() == "of the first\n"
    assert len(list((tmp_path / "out").iterdir())) == 2
  assert run("--ckpt", "x", "--limit", 1)[0] == 0


def test_an_evaluation_whose_folder_was_taken_writes_no_results(run, tmp_path):
  """An evaluation that was suspended for long loses its lock, as if it had been killed."""
  class Overtaken(FakeCodec):
    def decode(self, *arguments, **options):
      lock = tmp_path / "out" / "evaluation.lock"
      lock.write_text(json.dumps(dict(json.loads(lock.read_text()), run="another")))
      return super().decode(*arguments, **options)

  status, _, stderr = run("--ckpt", "x", "--limit", 1, codec=Overtaken)
  assert status == 2 and "is in use by another evaluation" in stderr
  assert not (tmp_path / "out" / "results.json").exists()


def test_tiles_are_a_curve_of_their_own(run, results):
  assert run("--ckpt", "x", "--qualities", "1", "--baselines", "none", "--tile", 64, "--report-images", 0)[0] == 0
  assert [entry["name"] for entry in results()["checkpoints"]] == ["fake", "fake, tiles of 64"]
