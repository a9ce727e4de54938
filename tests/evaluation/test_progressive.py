"""Tests of eval.py --progressive.

With the stand-in of test_eval.py, and with a real codec.
"""
import dataclasses

import numpy as np
import pytest
from helpers.fake_codec import CoderIsNotToBeUsed, FakeCodec, SingleRateCodec
from helpers.light_codec import light_model
from test_eval import (  # noqa: F401 (fixtures among them)
  IMAGE,
  plots_that_are_drawn,
  read_results,
  run_eval,
  two_photographs,
  without_times,
)

from mlic_jax.coding.codec import Codec
from mlic_jax.data.image_io import save_image
from mlic_jax.evaluation import image_metrics
from mlic_jax.evaluation.image_metrics import ProgressiveResult
from mlic_jax.evaluation.progressive import ProgressiveResults, mean, progressive_curves
from mlic_jax.evaluation.results_cache import ResultsCache
from mlic_jax.evaluation.workers import SerialExecutor
from mlic_jax.metrics import psnr

ONCE = ("--ckpt", "x", "--qualities", "1,3", "--baselines", "jpeg", "--report-images", "0")
NUM_SLICES = FakeCodec.config.num_slices


def without_progressive(results):
  """results.json without the fields of --progressive."""
  if isinstance(results, dict):
    return {key: without_progressive(value) for key, value in results.items() if not key.startswith("progressive")}
  return [without_progressive(each) for each in results] if isinstance(results, list) else results


def test_every_image_has_the_bytes_received_and_the_quality_after_each_slice(run, results):
  status, *_ = run(*ONCE, "--progressive")
  assert status == 0
  for entry in results()["checkpoints"]:
    for image, pixels in zip(entry["images"], [IMAGE, IMAGE[:40, ::-1]]):
      steps = image["progressive"]
      assert [list(step) for step in steps] == [["slices", "bytes", "bpp", "psnr", "ms_ssim"]] * (NUM_SLICES + 1)
      assert [step["slices"] for step in steps] == [0, 1, 2]
      assert [step["bytes"] for step in steps] == [image["bytes"] * part // 3 for part in (1, 2, 3)]
      assert [step["bpp"] for step in steps] == [8 * step["bytes"] / pixels[..., 0].size for step in steps]
      assert steps[0]["psnr"] == psnr(pixels, np.zeros_like(pixels)) < steps[1]["psnr"] < steps[2]["psnr"]


def test_all_slices_have_the_figures_of_the_complete_file(run, results, folder):
  save_image(folder / "c.png", np.tile(IMAGE, (3, 2, 1)))   # large enough for MS-SSIM
  run(*ONCE, "--progressive")
  fields = "bytes", "bpp", "psnr", "ms_ssim"
  for entry in results()["checkpoints"]:
    for whole, steps in [*((image, image["progressive"]) for image in entry["images"]),
                         (entry["mean"], entry["progressive_mean"])]:
      assert steps[-1] == {"slices": NUM_SLICES, **{field: whole[field] for field in fields}}
    steps = entry["images"][2]["progressive"]
    assert steps[0]["ms_ssim"] < steps[1]["ms_ssim"] < steps[2]["ms_ssim"]


def test_a_mean_counts_each_image_once_and_ms_ssim_where_there_is_one():
  assert mean([ProgressiveResult(1, 10, 0.5, 20.0, None), ProgressiveResult(1, 30, 1.0, 30.0, 0.9)]) == {
      "slices": 1, "bytes": 20, "bpp": 0.75, "psnr": 25, "ms_ssim": 0.9}
  assert mean([ProgressiveResult(0, 10, 0.5, 20.0, None)])["ms_ssim"] is None


def test_the_other_results_are_those_of_a_run_without_it(run, results, tmp_path):
  run(*ONCE)
  plain, table = results(), (tmp_path / "out" / "results.csv").read_text()
  assert not (tmp_path / "out" / "progressive.png").exists() and without_progressive(plain) == plain
  run(*ONCE, "--progressive")
  assert without_times(without_progressive(results())) == without_times(plain)
  assert (tmp_path / "out" / "results.csv").read_text().partition("\n")[0] == table.partition("\n")[0]


def test_the_table_has_a_row_per_quality_and_slice_and_the_plot_a_line_per_quality(
    drawn, run, results, tmp_path):
  _, out, _ = run(*ONCE, "--progressive")
  rows = [line.strip("│ ").split("│") for line in out.partition("progressive decoding")[2].splitlines()]
  rows = [[cell.strip() for cell in row] for row in rows]
  for entry in results()["checkpoints"]:
    for step in entry["progressive_mean"]:
      assert [str(entry["quality"]), str(step["slices"]), f"{step['bytes']:.0f}", f"{step['bpp']:.4f}",
              f"{step['psnr']:.2f}", "-"] in rows
  plot = (tmp_path / "out" / "progressive.svg").read_text()
  for text in "quality 1", "quality 3", "complete files", "bits per pixel received":
    assert f">{text}</text>" in plot
  assert (tmp_path / "out" / "progressive.png").exists()


def test_single_rates_of_a_family_are_told_apart_by_their_names(drawn, run, tmp_path):
  status, out, _ = run("--ckpt", "mlic_q10", "mlic_q50", *ONCE[4:], "--progressive", codec=SingleRateCodec)
  assert status == 0 and out.partition("progressive decoding")[2].count("mlic_q50 │") == NUM_SLICES + 1
  plot = (tmp_path / "out" / "progressive.svg").read_text()
  assert ">mlic_q10</text>" in plot and ">mlic_q50</text>" in plot


def test_lines_of_several_checkpoints_carry_their_names():
  steps = [{"bpp": 0.1, "psnr": 20.0}, {"bpp": 0.2, "psnr": 25.0}]
  entry = {"name": "a", "quality": 2.5, "progressive_mean": steps, "mean": {"bpp": 0.2, "psnr": 25.0}, "images": []}
  curves = progressive_curves([("a", [entry]), ("b", [entry, entry])])
  assert [curve.name for curve in curves] == ["a, quality 2.5", "b, complete files", "b, quality 2.5", "b, quality 2.5"]
  assert curves[0].bpp.tolist() == [0.1, 0.2] and curves[0].db.tolist() == [20, 25]


def test_resume_adds_it_to_a_run_without_it_and_then_codes_nothing_again(run, results):
  run(*ONCE)
  plain = results()
  status, *_ = run(*ONCE, "--progressive", "--resume")
  whole = results()
  assert status == 0 and without_times(without_progressive(whole)) == without_times(plain)
  status, *_ = run(*ONCE, "--progressive", "--resume", codec=CoderIsNotToBeUsed)
  assert status == 0 and results()["checkpoints"] == whole["checkpoints"]
  status, *_ = run(*ONCE, "--resume", codec=CoderIsNotToBeUsed)
  assert status == 0 and without_times(results()) == without_times(plain)


def test_an_interrupted_run_resumed_decodes_only_what_is_lacking(run, results):
  class Interrupted(FakeCodec):
    def decode_progressively(self, blob):
      if blob == self.encode_with_reconstruction(IMAGE[:40, ::-1], 3)[0]:   # the last image at the last quality
        raise KeyboardInterrupt
      return super().decode_progressively(blob)

  decoded = []

  class Counting(FakeCodec):
    def decode_progressively(self, blob):
      decoded.append(blob)
      return super().decode_progressively(blob)

  run(*ONCE, "--progressive")
  whole = results()
  status, *_ = run(*ONCE, "--progressive", codec=Interrupted)
  assert status == 130
  status, *_ = run(*ONCE, "--progressive", "--resume", codec=Counting)
  assert status == 0 and len(decoded) == 1 and without_times(results()) == without_times(whole)


def test_workers_change_nothing(run, results):
  few = *ONCE, "--progressive", "--limit", 1
  run(*few)
  alone = results()
  status, *_ = run(*few, "--workers", 1)
  assert status == 0 and without_times(results()) == without_times(alone)


def test_an_estimate_has_nothing_to_receive_which_is_one_line(run, tmp_path):
  status, out, err = run("--ckpt", "x", "--progressive", "--estimate")
  assert status == 2 and "--estimate writes none" in err and err.count("\n") == 1 and not out
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("drop_bytes, drop_sample", [(1, 0), (0, 1)])
def test_another_image_or_size_at_the_end_ends_the_run_with_status_1(run, tmp_path, drop_bytes, drop_sample):
  class Differs(FakeCodec):
    def decode_progressively(self, blob):
      for received, image in super().decode_progressively(blob):
        image[3, 4, 1] ^= drop_sample
        yield received - drop_bytes, image

  status, _, err = run(*ONCE, "--progressive", codec=Differs)
  assert status == 1 and err.startswith("eval.py: a.png at quality 1: progressive decoding") and err.count("\n") == 1
  assert not (tmp_path / "out" / "results.json").exists()


def test_a_cached_result_without_a_field_is_measured_again(tmp_path):
  cache = ResultsCache(tmp_path / "journal")
  cache.add_progressive("codec", "pixels", 1, [ProgressiveResult(0, 10, 0.5, 20.0, None)])
  again = ResultsCache(tmp_path / "journal", resume=True)
  assert again.progressive("codec", "pixels", 1) == [ProgressiveResult(0, 10, 0.5, 20.0, None)]
  (tmp_path / "journal").write_text((tmp_path / "journal").read_text().replace('"bpp"', '"rate"'))
  assert ResultsCache(tmp_path / "journal", resume=True).progressive("codec", "pixels", 1) is None


def test_a_real_codec_shows_an_image_per_slice_and_ends_with_the_complete_file(photograph):
  codec = Codec(light_model())
  cache = ResultsCache()
  coded = image_metrics.code(codec, "photo", photograph, 2)
  ProgressiveResults({"photo": "pixels"}, cache, SerialExecutor()).measure(codec, "key", "photo", photograph, 2, coded)
  steps = cache.progressive("key", "pixels", 2)
  assert [step.slices for step in steps] == list(range(codec.config.num_slices + 1))
  assert 0 < steps[0].bytes < steps[1].bytes < steps[2].bytes and len({step.psnr for step in steps}) == len(steps)
  whole = image_metrics.compare("photo", photograph, coded)
  assert dataclasses.astuple(steps[-1])[1:] == (whole.bytes, whole.bpp, whole.psnr, whole.ms_ssim)
  for step in steps:
    assert step.psnr == psnr(photograph, codec.decode(coded.blob, slices=step.slices))
