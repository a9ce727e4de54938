"""Tests of results of one image and of many, with a fake codec that stores JPEG, and of cached results."""
import json

import numpy as np
import pytest
from helpers.fake_codec import CoderIsNotToBeUsed, FakeCodec, WrongDecoder
from helpers.image_sets import photographs
from test_eval import IMAGE

import mlic_jax
from mlic_jax.data.image_io import ImageError
from mlic_jax.evaluation import baselines, image_metrics, runner
from mlic_jax.evaluation.results_cache import ResultsCache
from mlic_jax.metrics import psnr


def measured(codec, image, quality, estimated=False):
  """Returns one image named "photo" at one quality."""
  return image_metrics.measure_codec(codec, "photo", image, [quality], estimated=estimated)[0].result()


# --- one image -----------------------------------------------------------------------

def test_the_rate_is_that_of_the_whole_file_over_the_pixels_of_the_image():
  codec = FakeCodec()
  result = measured(codec, IMAGE, 3)
  blob, reconstruction = codec.encode_with_reconstruction(IMAGE, 3)
  assert (result.name, result.height, result.width, result.bytes) == ("photo", 70, 100, len(blob))
  assert result.bpp == 8 * len(blob) / 7000
  assert result.bpp_estimated == pytest.approx(result.bpp - 40 / 7000)
  assert result.psnr == psnr(IMAGE, reconstruction)
  assert result.ms_ssim is None                          # 70 pixels are too few
  assert result.encode_s > 0 and result.decode_s > 0


def test_a_decoder_that_differs_in_one_sample_is_caught_and_the_image_named():
  with pytest.raises(image_metrics.ReconstructionMismatch, match=r"photo at quality 3: 0.01% of the decoded pixels"):
    measured(WrongDecoder(), IMAGE, 3)


def test_a_file_that_does_not_decode_is_caught_and_the_image_named():
  codec = FakeCodec()
  codec.decode = lambda blob: (_ for _ in ()).throw(mlic_jax.BitstreamError("the file is damaged"))
  with pytest.raises(image_metrics.ReconstructionMismatch, match="photo at quality 3: the file is damaged"):
    measured(codec, IMAGE, 3)


def test_an_estimate_has_no_bytes_and_no_times_and_does_not_code():
  result = measured(CoderIsNotToBeUsed(), IMAGE, 3, estimated=True)
  assert (result.bytes, result.bpp, result.encode_s, result.decode_s) == (None,) * 4
  assert result.bpp_estimated > 0 and result.psnr > 20


def test_a_baseline_is_measured_on_the_same_terms():
  result = image_metrics.measure_baseline(baselines.JPEG, "photo", IMAGE, [30])[0]
  learned = measured(FakeCodec(), IMAGE, 3)
  assert (result.bytes, result.bpp, result.psnr) == (learned.bytes, learned.bpp, learned.psnr)
  assert result.bpp_estimated is None


def test_a_baseline_that_cannot_hold_an_image_is_one_line():
  wide = np.zeros((1, 16384, 3), np.uint8)
  with pytest.raises(ImageError, match="wide: WebP cannot encode 16384x1 pixels"):
    image_metrics.measure_baseline(baselines.WEBP, "wide", wide, [30])


# --- many images ---------------------------------------------------------------------

def result(name, side, error, similarity, encode_s):
  """Returns the result of a side x side image that takes 1 bit per pixel."""
  similarity_db = None if similarity is None else -10 * np.log10(1 - similarity)
  psnr = 10 * np.log10(255**2 / error)
  return image_metrics.ImageResult(name, side, side, side**2 // 8, 1.0, 0.5, error, psnr, similarity,
                             similarity_db, encode_s, 2 * encode_s)


def test_a_mean_counts_each_image_once_and_skips_what_an_image_does_not_have():
  small, large = result("a", 8, 40.0, None, 1.0), result("b", 800, 10.0, 0.9, 3.0)
  mean = image_metrics.mean([small, large])
  assert (mean["bytes"], mean["bpp"], mean["ms_ssim"], mean["encode_s"], mean["decode_s"]) == (40004, 1, 0.9, 2, 4)
  assert mean["psnr"] == pytest.approx((small.psnr + large.psnr) / 2)
  assert image_metrics.mean([small])["ms_ssim"] is None and image_metrics.mean([small])["ms_ssim_mean_of_db"] is None


def test_both_conventions_of_a_mean_are_given_by_name():
  # Squared errors of 40 over 64 pixels and of 10 over 3 * 64: 17.5 in the pool.
  mean = image_metrics.mean([result("a", 8, 40.0, 0.9, 1.0), *[result("b", 8, 10.0, 0.99, 1.0)] * 3])
  assert mean["psnr_of_pooled_mse"] == pytest.approx(10 * np.log10(255**2 / 17.5))
  assert mean["psnr"] == pytest.approx(10 * np.log10(255**2) - (16.0206 + 3 * 10) / 4, abs=1e-4)
  assert mean["ms_ssim_db_of_mean"] == pytest.approx(-10 * np.log10(1 - 0.9675))
  assert mean["ms_ssim_mean_of_db"] == pytest.approx((10 + 3 * 20) / 4)


def test_pixels_of_a_large_image_weigh_more_in_the_pooled_error():
  mean = image_metrics.mean([result("a", 8, 40.0, None, 1.0), result("b", 24, 10.0, None, 1.0)])
  assert mean["psnr_of_pooled_mse"] == pytest.approx(10 * np.log10(255**2 / 13))


def test_each_new_padded_size_is_run_once_before_it_is_timed():
  codec = FakeCodec()
  runner.evaluate_codec(codec, (2, 5), photographs(IMAGE[:64, :64], IMAGE[:20, :30], IMAGE[:65]))
  small, tiny, large = (64, 64, 3), (20, 30, 3), (65, 100, 3)
  assert codec.encoded == [(small, 2), (small, 2), (small, 5), (tiny, 2), (tiny, 5),
                           (large, 2), (large, 2), (large, 5)]


def test_the_baselines_come_as_one_entry_per_quality():
  calls, both = [], [baselines.JPEG, baselines.WEBP]
  entries = runner.evaluate_baselines(both, photographs(IMAGE, IMAGE[:30]), advance=lambda: calls.append(1))
  assert len(calls) == 4                                 # two images, two baselines
  assert [(entry["name"], entry["quality"]) for entry in entries] == [
      (each.name, quality) for each in both for quality in each.qualities]
  assert [image["name"] for image in entries[0]["images"]] == ["photo0.png", "photo1.png"]


# --- what is not done twice ----------------------------------------------------------

def test_what_the_journal_has_is_not_measured_again_and_what_it_lacks_is(tmp_path):
  runner.evaluate_codec(FakeCodec(), (1, 2), photographs(IMAGE), cache=ResultsCache(tmp_path / "journal"))
  codec, cache = FakeCodec(), ResultsCache(tmp_path / "journal", resume=True)
  entries = runner.evaluate_codec(codec, (1, 2, 3), photographs(IMAGE[:64], IMAGE), cache=cache)
  whole, part = IMAGE.shape, IMAGE[:64].shape
  # A first run of either size, then all qualities of the new image, and of the known one the new quality.
  assert codec.encoded == [(part, 1), (part, 1), (part, 2), (part, 3), (whole, 1), (whole, 3)]
  assert [image["name"] for image in entries[0]["images"]] == ["photo0.png", "photo1.png"]  # today's names


def test_another_training_under_the_same_name_is_measured_again(tmp_path):
  runner.evaluate_codec(FakeCodec(), (1,), photographs(IMAGE), cache=ResultsCache(tmp_path / "journal"))
  codec = FakeCodec()
  codec.fingerprint = b"more"
  runner.evaluate_codec(codec, (1,), photographs(IMAGE), cache=ResultsCache(tmp_path / "journal", resume=True))
  assert codec.encoded


def test_half_a_line_of_a_killed_run_is_dropped_and_the_next_line_is_whole(tmp_path):
  path = tmp_path / "journal"
  runner.evaluate_codec(FakeCodec(), (1,), photographs(IMAGE, IMAGE[:30]), cache=ResultsCache(path))
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines)[:-20])
  codec = FakeCodec()
  runner.evaluate_codec(codec, (1,), photographs(IMAGE, IMAGE[:30]), cache=ResultsCache(path, resume=True))
  assert {shape for shape, _ in codec.encoded} == {IMAGE[:30].shape}
  assert all(json.loads(line) for line in path.read_text().splitlines())
