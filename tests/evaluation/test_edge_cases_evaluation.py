"""Tests of evaluations with unusual folders: names, links, images that a codec cannot encode, old results."""
import csv
import json
import os
import re
import signal

import numpy as np
import pytest
from helpers.fake_codec import FakeCodec
from test_eval import IMAGE, plots_that_are_drawn, read_results, run_eval, two_photographs  # noqa: F401 (fixtures)

from mlic_jax.coding import memory_estimate
from mlic_jax.data.file_listing import list_files
from mlic_jax.data.image_io import encode_lossless, list_images, save_image
from mlic_jax.evaluation import (
  baselines,
  bd_rate,
  image_metrics,
  plots,
  report,
  report_images,
  results,
  results_cache,
  workers,
)
from mlic_jax.evaluation.image_metrics import ImageResult
from mlic_jax.subprocess_signals import ignore_signals_in_children

FEW = "--ckpt", "x", "--qualities", "1", "--baselines", "none"


def evaluated(results):
  return [image["name"] for image in results()["checkpoints"][0]["images"]]


# --- names ---------------------------------------------------------------------------

def test_images_whose_names_are_alike_in_ascii_are_evaluated_and_found_again(run, results, folder, tmp_path):
  (folder / "a").mkdir()
  for i, name in enumerate([b"\xe7\x8c\xab.png", b"\xe7\x8b\x97.png", b"a/b.png", b"a-b.png", b"A.png", b"caf\xe9.png",
                            b"new\nline.png", b"\"quoted'.png"]):
    path = folder / os.fsdecode(name)
    path.write_bytes(encode_lossless("a.png", np.roll(IMAGE, i, axis=1)))
  status, _, err = run(*FEW, "--report-images", "20")
  assert (status, err) == (0, "")
  names = evaluated(results)
  assert len(set(names)) == 10 and {"猫.png", "caf\\udce9.png", "new\\nline.png"} <= set(names)
  shown = {each["reconstruction"] for each in results()["pictures"]}
  assert len(shown) == 10                                # a file for each image
  with open(tmp_path / "out" / "results.csv", newline="") as file:
    assert {row["name"] for row in csv.DictReader(file)} == set(names)
  assert run(*FEW, "--report-images", "20", "--resume")[0] == 0


def test_a_slug_is_a_safe_name_and_no_two_names_have_the_same(tmp_path):
  names = ["a.png", "A.png", "a b.png", "a-b.png", "猫", "狗", "", "-", "..", "x" * 300, "x" * 301, "con\\udce9"]
  slugs = [report_images.slug(name) for name in names]
  assert len(set(slugs)) == len(names)
  for slug in slugs:
    assert re.fullmatch(r"[a-z0-9.+-]+", slug) and len(slug) < 100 and not slug.startswith(".")


def test_curves_whose_names_are_alike_have_a_file_each_for_compressai(tmp_path):
  entry = {"mean": {"bpp": 1.0, "bpp_estimated": None, "psnr": 30.0, "ms_ssim": None}}
  results.write_compressai(tmp_path, [(name, [entry]) for name in ("猫", "狗", "WebP", "webp", "WebP")], "title")
  assert sorted(json.loads(path.read_text())["name"] for path in tmp_path.iterdir()) == sorted(
      ["猫", "狗", "WebP", "webp", "WebP"])


def test_a_folder_or_a_checkpoint_may_be_called_what_is_markup_elsewhere(drawn, run, folder, tmp_path):
  class Marked(FakeCodec):
    name = "[red] :smile: $x^{"

  odd = tmp_path / "photos [bold] $\\frac{1}$ <!-- <script>"
  folder.rename(odd)
  status, out, err = run(*FEW, "--data", odd, "--out", tmp_path / "out[" / "red]", codec=Marked)
  assert (status, err) == (0, "") and "[red] :smile: $x^{: photos [bold]" in out
  assert "[red] :smile: $x^{" in (tmp_path / "out[" / "red]" / "rd.svg").read_text()


def test_nothing_in_a_name_can_end_the_script_of_the_page_or_hide_its_end(tmp_path):
  found = {"curves": [], "pictures": [], "published": None, "estimate": False, "bd_rates": [], "checkpoints": [],
           "costs": []}
  record = {"image": "<!--<script>", "original": "o.webp", "reconstruction": "o.webp", "error": "o.webp",
            "bits": "o.webp", "baseline": None, "bits_of_slices": [1.0], "width": 1, "height": 1}
  (tmp_path / "o.webp").write_bytes(b"")
  page = report.page({**found, "pictures": [record]}, tmp_path, "title")
  script = page[page.index('id="data">') + 10:]
  assert "<" not in script[:script.index("</script>")]


def test_a_plot_takes_any_title_and_warns_of_no_glyph(tmp_path, recwarn):
  curve = bd_rate.Curve("猫 $", np.array([0.1, 0.2]), np.array([30.0, 31.0]))
  for extension in "png", "svg":
    plots.save_rd_plot(tmp_path / f"rd.{extension}", [curve], "$\\x 猫")
  assert not recwarn.list


# --- folders -------------------------------------------------------------------------

def test_linked_folders_are_searched_once_and_loops_end(tmp_path):
  for name in ("data/own/a.png", "elsewhere/b.png", "data/.hidden/c.png"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  data = tmp_path / "data"
  (data / "linked").symlink_to(tmp_path / "elsewhere")
  (data / "again").symlink_to(data / "own")
  (data / "own" / "up").symlink_to(data)
  (data / "self.png").symlink_to(data / "self.png")
  (data / "broken.png").symlink_to(tmp_path / "nowhere")
  (data / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
  os.mkfifo(data / "pipe.png")
  assert list_images(data) == [data / "link.png", data / "linked" / "b.png", data / "own" / "a.png"]
  assert list_images(data / "linked") == [data / "linked" / "b.png"]


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path):
  (tmp_path / "closed").mkdir(mode=0)
  with pytest.raises(PermissionError, match="closed"):
    list_files(tmp_path, lambda name: True)


def test_what_an_evaluation_wrote_is_not_among_the_images_of_the_next(run, results, folder):
  for _ in range(2):
    status, *_ = run(*FEW, "--out", folder / "out" / "fake")
    assert status == 0
  run(*FEW)
  assert evaluated(results) == ["a.png", "b.png"]
  status, _, err = run(*FEW, "--out", folder / "out" / "..")
  assert status == 2 and "is the folder of --data" in err


# --- codecs that cannot hold an image -------------------------------------------------

def limited(monkeypatch, width):
  """JPEG and WebP, of which the second holds images of less than so many pixels a row."""
  def encode(image, quality):
    if image.shape[1] >= width:
      raise RuntimeError("too wide\nfor this")           # as plugins have errors of their own
    return baselines.encode_webp(image, quality)

  webp = baselines.WEBP._replace(encode=encode, qualities=(10,), all_qualities=range(10, 11))
  jpeg = baselines.JPEG._replace(qualities=(50,), all_qualities=range(50, 51))
  monkeypatch.setattr(baselines, "BASELINES", {"jpeg": jpeg, "webp": webp})


@pytest.mark.parametrize("arguments", [(), ("--workers", "0", "--anchor", "webp")])
def test_a_codec_is_left_out_for_an_image_that_it_cannot_hold_which_is_said(
    arguments, run, results, folder, tmp_path, monkeypatch):
  limited(monkeypatch, 100)
  save_image(folder / "narrow.png", IMAGE[:, :50])
  status, _, err = run("--ckpt", "x", "--qualities", "1", "--baselines", "jpeg,webp", *arguments)
  assert status == 0
  assert [line for line in err.splitlines()] == [
      f"warning: {name}.png: WebP cannot encode {size} pixels (too wide for this); its curve is omitted, because it "
      "would lack images" for name, size in (("a", "100x70"), ("b", "100x40"))]
  held = {entry["name"]: [image["name"] for image in entry["images"]] for entry in results()["baselines"]}
  assert held == {"JPEG 4:2:0": ["a.png", "b.png", "narrow.png"], "WebP": ["narrow.png"]}
  assert {curve["name"] for curve in results()["curves"]} == {"fake", "JPEG 4:2:0"}
  assert sorted(path.name for path in (tmp_path / "out" / "compressai").iterdir()) == ["fake.json", "jpeg-4-2-0.json"]


def test_a_codec_that_can_hold_no_image_has_no_entries(run, results, monkeypatch):
  limited(monkeypatch, 1)
  status, *_ = run("--ckpt", "x", "--qualities", "1", "--baselines", "webp")
  assert status == 0 and results()["baselines"] == [] and results()["anchor"] == "fake"


def test_a_limit_of_a_codec_comes_out_of_another_process():
  import pickle
  error = pickle.loads(pickle.dumps(image_metrics.BaselineLimit("a.png: WebP cannot encode it")))
  assert isinstance(error, image_metrics.BaselineLimit) and str(error) == "a.png: WebP cannot encode it"


def test_an_image_that_the_memory_does_not_hold_is_refused_before_the_work(run, tmp_path, monkeypatch):
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: 1000)
  status, _, err = run(*FEW)
  assert status == 2 and "eval.py: a.png: the image is 70x100, and coding it with" in err and err.count("\n") == 1
  assert not (tmp_path / "out").exists()


# --- old results ---------------------------------------------------------------------

RESULT = ImageResult("a.png", 4, 4, 10, 5.0, None, 1.0, 48.0, None, None, 0.1, 0.1)


def test_old_measurements_stay_until_the_first_new_one_is_whole(tmp_path):
  path = tmp_path / "measurements.jsonl"
  results_cache.ResultsCache(path).add("old", "pixels", {1: RESULT})
  fresh = results_cache.ResultsCache(path)                          # and is interrupted
  assert not fresh.results("old", "pixels") and results_cache.ResultsCache(path, resume=True).results("old", "pixels")
  fresh.add("new", "pixels", {1: RESULT})
  fresh.add("new", "others", {1: RESULT})
  cache = results_cache.ResultsCache(path, resume=True)
  assert not cache.results("old", "pixels") and cache.results("new", "pixels") and cache.results("new", "others")
  cache.add("third", "pixels", {1: RESULT})
  assert results_cache.ResultsCache(path, resume=True).results("new", "pixels")


# --- Ctrl-C --------------------------------------------------------------------------

def blocked():
  return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_worker_processes_do_not_hear_ctrl_c_and_the_program_does():
  assert not blocked()
  with workers.WorkerPool(1) as processes:
    assert processes.submit(blocked).result()
  assert not blocked()


def test_the_processes_of_a_training_start_with_the_first_batch_and_deaf():
  from mlic_jax.data.loader import Batches
  heard = []

  def batches():
    for _ in range(2):
      heard.append(blocked())
      yield np.zeros(1), []

  reader = Batches(batches())
  next(reader), next(reader)
  assert heard == [True, False]


def test_a_ctrl_c_while_processes_start_is_not_lost():
  with pytest.raises(KeyboardInterrupt), ignore_signals_in_children():
    signal.raise_signal(signal.SIGINT)


def test_images_below_the_folder_that_one_stands_in_have_names_of_their_own(run, results, folder, monkeypatch):
  (folder / "sub").mkdir()
  save_image(folder / "sub" / "a.png", IMAGE[:30])
  monkeypatch.chdir(folder)
  run(*FEW, "--data", ".")
  assert evaluated(results) == ["a.png", "b.png", "sub/a.png"]
