"""From a codec and photographs to figures, a table and files; what is refused, and how; what is not done twice.

The codec here is a stand-in with the interface of mlic_jax.Codec, which stores JPEG: what eval.py says of it
can be checked by hand.
"""
import csv
import json

import numpy as np
import pytest
from fake_codec import CONFIG, CoderIsNotToBeUsed, FakeCodec, SingleRateCodec, WrongDecoder, bits_of

import eval as evaluation_script
import mlic_jax
from mlic_jax.evaluation import baselines, bits, data, measure, sweep
from mlic_jax.evaluation.journal import Journal
from mlic_jax.evaluation.metrics import psnr
from mlic_jax.images import ImageError, save_image

rows, columns = np.mgrid[:70, :100][..., None] / 9
IMAGE = np.uint8(127 + 100 * np.sin(rows + [0, 1, 2]) * np.cos(columns * [1, 0.7, 1.3]))
FIGURES = {"bytes", "bpp", "bpp_estimated", "psnr", "ms_ssim", "encode_s", "decode_s"}


def measured(codec, image, quality, estimated=False):
  """One image named "photo" at one quality."""
  return measure.measure_codec(codec, "photo", image, [quality], estimated=estimated)[0].result()


def photographs(*images):
  named = [(f"photo{i}.png", image) for i, image in enumerate(images)]
  return data.Photographs("photos", len(named), lambda: iter(named))


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "photos").mkdir()
  save_image(tmp_path / "photos" / "a.png", IMAGE)
  save_image(tmp_path / "photos" / "b.png", IMAGE[:40, ::-1])
  return tmp_path / "photos"


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
  """eval.py on `folder` into tmp_path / "out": (exit status, stdout, stderr)."""
  def run(*arguments, codec=FakeCodec):
    monkeypatch.setitem(vars(mlic_jax), "Codec", codec)
    monkeypatch.setattr(bits, "bits_map", lambda codec, *picture: bits_of(*picture))
    given = ["--data", folder, "--out", tmp_path / "out", *arguments]
    status = evaluation_script.main([str(argument) for argument in given])
    return status, *capsys.readouterr()
  return run


@pytest.fixture
def results(tmp_path):
  return lambda: json.loads((tmp_path / "out" / "results.json").read_text())


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
  with pytest.raises(measure.ReconstructionMismatch, match=r"photo at quality 3: 0.01% of the decoded pixels"):
    measured(WrongDecoder(), IMAGE, 3)


def test_a_file_that_does_not_decode_is_caught_and_the_image_named():
  codec = FakeCodec()
  codec.decode = lambda blob: (_ for _ in ()).throw(mlic_jax.BitstreamError("the file is damaged"))
  with pytest.raises(measure.ReconstructionMismatch, match="photo at quality 3: the file is damaged"):
    measured(codec, IMAGE, 3)


def test_an_estimate_has_no_bytes_and_no_times_and_does_not_code():
  result = measured(CoderIsNotToBeUsed(), IMAGE, 3, estimated=True)
  assert (result.bytes, result.bpp, result.encode_s, result.decode_s) == (None,) * 4
  assert result.bpp_estimated > 0 and result.psnr > 20


def test_a_baseline_is_measured_on_the_same_terms():
  result = measure.measure_baseline(baselines.JPEG, "photo", IMAGE, [30])[0]
  learned = measured(FakeCodec(), IMAGE, 3)
  assert (result.bytes, result.bpp, result.psnr) == (learned.bytes, learned.bpp, learned.psnr)
  assert result.bpp_estimated is None


def test_a_baseline_that_cannot_hold_an_image_is_one_line():
  wide = np.zeros((1, 16384, 3), np.uint8)
  with pytest.raises(ImageError, match="wide: WebP cannot hold 16384x1 pixels"):
    measure.measure_baseline(baselines.WEBP, "wide", wide, [30])


# --- many images ---------------------------------------------------------------------

def result(name, side, error, similarity, encode_s):
  """Of a side x side image that takes 1 bit per pixel."""
  similarity_db = None if similarity is None else -10 * np.log10(1 - similarity)
  return measure.ImageResult(name, side, side, side**2 // 8, 1.0, 0.5, error, 10 * np.log10(255**2 / error), similarity,
                             similarity_db, encode_s, 2 * encode_s)


def test_a_mean_counts_each_image_once_and_skips_what_an_image_does_not_have():
  small, large = result("a", 8, 40.0, None, 1.0), result("b", 800, 10.0, 0.9, 3.0)
  mean = measure.mean([small, large])
  assert (mean["bytes"], mean["bpp"], mean["ms_ssim"], mean["encode_s"], mean["decode_s"]) == (40004, 1, 0.9, 2, 4)
  assert mean["psnr"] == pytest.approx((small.psnr + large.psnr) / 2)
  assert measure.mean([small])["ms_ssim"] is None and measure.mean([small])["ms_ssim_mean_of_db"] is None


def test_both_conventions_of_a_mean_are_given_by_name():
  # Squared errors of 40 over 64 pixels and of 10 over 3 * 64: 17.5 in the pool.
  mean = measure.mean([result("a", 8, 40.0, 0.9, 1.0), *[result("b", 8, 10.0, 0.99, 1.0)] * 3])
  assert mean["psnr_of_pooled_mse"] == pytest.approx(10 * np.log10(255**2 / 17.5))
  assert mean["psnr"] == pytest.approx(10 * np.log10(255**2) - (16.0206 + 3 * 10) / 4, abs=1e-4)
  assert mean["ms_ssim_db_of_mean"] == pytest.approx(-10 * np.log10(1 - 0.9675))
  assert mean["ms_ssim_mean_of_db"] == pytest.approx((10 + 3 * 20) / 4)


def test_pixels_of_a_large_image_weigh_more_in_the_pooled_error():
  mean = measure.mean([result("a", 8, 40.0, None, 1.0), result("b", 24, 10.0, None, 1.0)])
  assert mean["psnr_of_pooled_mse"] == pytest.approx(10 * np.log10(255**2 / 13))


def test_each_new_padded_size_is_run_once_before_it_is_timed():
  codec = FakeCodec()
  sweep.evaluate_codec(codec, (2, 5), photographs(IMAGE[:64, :64], IMAGE[:20, :30], IMAGE[:65]))
  small, tiny, large = (64, 64, 3), (20, 30, 3), (65, 100, 3)
  assert codec.encoded == [(small, 2), (small, 2), (small, 5), (tiny, 2), (tiny, 5),
                           (large, 2), (large, 2), (large, 5)]


def test_the_baselines_come_as_one_entry_per_quality():
  calls, both = [], [baselines.JPEG, baselines.WEBP]
  entries = sweep.evaluate_baselines(both, photographs(IMAGE, IMAGE[:30]), advance=lambda: calls.append(1))
  assert len(calls) == 4                                 # two images, two baselines
  assert [(entry["name"], entry["quality"]) for entry in entries] == [
      (each.name, quality) for each in both for quality in each.qualities]
  assert [image["name"] for image in entries[0]["images"]] == ["photo0.png", "photo1.png"]


# --- what is not done twice ----------------------------------------------------------

def test_what_the_journal_has_is_not_measured_again_and_what_it_lacks_is(tmp_path):
  sweep.evaluate_codec(FakeCodec(), (1, 2), photographs(IMAGE), journal=Journal(tmp_path / "journal"))
  codec, journal = FakeCodec(), Journal(tmp_path / "journal", resume=True)
  entries = sweep.evaluate_codec(codec, (1, 2, 3), photographs(IMAGE[:64], IMAGE), journal=journal)
  whole, part = IMAGE.shape, IMAGE[:64].shape
  # A first run of either size, then all qualities of the new image, and of the known one the new quality.
  assert codec.encoded == [(part, 1), (part, 1), (part, 2), (part, 3), (whole, 1), (whole, 3)]
  assert [image["name"] for image in entries[0]["images"]] == ["photo0.png", "photo1.png"]  # today's names


def test_another_training_under_the_same_name_is_measured_again(tmp_path):
  sweep.evaluate_codec(FakeCodec(), (1,), photographs(IMAGE), journal=Journal(tmp_path / "journal"))
  codec = FakeCodec()
  codec.fingerprint = b"more"
  sweep.evaluate_codec(codec, (1,), photographs(IMAGE), journal=Journal(tmp_path / "journal", resume=True))
  assert codec.encoded


def test_half_a_line_of_a_killed_run_is_dropped_and_the_next_line_is_whole(tmp_path):
  path = tmp_path / "journal"
  sweep.evaluate_codec(FakeCodec(), (1,), photographs(IMAGE, IMAGE[:30]), journal=Journal(path))
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines)[:-20])
  codec = FakeCodec()
  sweep.evaluate_codec(codec, (1,), photographs(IMAGE, IMAGE[:30]), journal=Journal(path, resume=True))
  assert {shape for shape, _ in codec.encoded} == {IMAGE[:30].shape}
  assert all(json.loads(line) for line in path.read_text().splitlines())


# --- where the photographs come from -------------------------------------------------

def test_the_sample_photographs_are_in_the_wheel_of_scikit_image_and_in_colour():
  samples = data.open_photographs(None)
  images = dict(samples.read())
  assert len(images) == samples.size >= 2
  for image in images.values():
    assert min(image.shape[:2]) >= 300 and image.std(axis=-1).mean() > 5


def test_a_folder_is_read_in_order_by_relative_names_up_to_the_limit(folder):
  (folder / "A").mkdir()
  save_image(folder / "A" / "c.png", IMAGE[:9])
  everything = data.open_photographs(str(folder))
  assert [name for name, _ in everything.read()] == ["A/c.png", "a.png", "b.png"]
  first = data.open_photographs(str(folder), limit=1)
  assert first.size == 1 and [image.shape for _, image in first.read()] == [(9, 100, 3)]


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  """A dataset "mlic_jax_tiny", prepared as array_record (version 1.0.0) and as TFRecord (2.0.0)."""
  tfds = pytest.importorskip("tensorflow_datasets")

  class MlicJaxTiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SUPPORTED_VERSIONS = [tfds.core.Version("2.0.0")]  # noqa: RUF012 (TFDS adds it to a list)
    pkg_dir_path = tmp_path_factory.mktemp("package")    # where TFDS looks for a README

    def _info(self):
      features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": np.int64}
      return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download_manager):
      return {"train": self._generate_examples(1), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
      for i in range(count):
        yield i, {"image": IMAGE[:20 + i], "label": i}

  place = tmp_path_factory.mktemp("tfds")
  for version, file_format in [("1.0.0", "array_record"), ("2.0.0", "tfrecord")]:
    MlicJaxTiny(data_dir=place, version=version, file_format=file_format).download_and_prepare()
  return place


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_a_prepared_tfds_dataset_is_read_by_its_image_feature(tfds_folder, monkeypatch, version):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  test = data.open_photographs(f"tfds:mlic_jax_tiny:{version}")
  assert test.size == 3 and len({name for name, _ in test.read()}) == 3
  assert sorted(image.shape for _, image in test.read()) == [(20, 100, 3), (21, 100, 3), (22, 100, 3)]
  for _, image in test.read():
    np.testing.assert_array_equal(image, IMAGE[:image.shape[0]])
  assert data.open_photographs(f"tfds:mlic_jax_tiny:{version}:train").size == 1
  assert data.open_photographs(f"tfds:mlic_jax_tiny:{version}:test[:2]").size == 2
  assert len(list(data.open_photographs(f"tfds:mlic_jax_tiny:{version}", limit=2).read())) == 2


@pytest.mark.parametrize("name, message", [
    ("tfds:mlic_jax_tiny:1.0.0:validation", "no split 'validation'; wanted one of "),
    ("tfds:mnist", r"not prepared in .*; prepare it with .*builder\('mnist'"),
    ("tfds:no_such_dataset", "no such dataset")])
def test_a_tfds_dataset_that_is_not_there_is_one_line(tfds_folder, monkeypatch, name, message):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  with pytest.raises(ImageError, match=message) as error:
    data.open_photographs(name)
  assert "\n" not in str(error.value)


# --- the program ---------------------------------------------------------------------

def test_results_json_has_the_promised_fields_one_entry_per_quality(run, results, tmp_path):
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


def test_a_codec_that_is_jpeg_gains_nothing_on_jpeg(run, results):
  _, out, _ = run("--ckpt", "x")
  gains = {row["curve"]: row["percent"] for row in results()["bd_rates"]}
  assert abs(gains["fake"]) < 3 and gains["WebP"] < -3
  assert "BD-rate against JPEG 4:2:0" in out and "times exclude compilation" in out
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
  """results.json without what no two runs have in common."""
  if isinstance(results, dict):
    return {key: without_times(value) for key, value in results.items()
            if key not in ("encode_s", "decode_s", "first_run", "peak_memory_bytes")}
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
    patch.setattr(measure, "measure_baseline", lambda *_: pytest.fail("baselines are measured again"))
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
  assert results()["bd_rates"][0]["percent"] is None and "one point is no curve" in out


def test_what_the_user_can_mend_is_one_line_and_status_2_and_nothing_written(run, folder, tmp_path):
  (tmp_path / "empty").mkdir()
  for arguments, message in [
      (["--ckpt", "missing"], "missing: no such directory"),
      (["--ckpt", "x", "--data", tmp_path / "gone"], "gone: no such folder"),
      (["--ckpt", "x", "--data", tmp_path / "empty"], "holds no image"),
      (["--ckpt", "x", "--qualities", "7"], "7; fake has qualities from 1 to 6"),
      (["--ckpt", "x", "--qualities", "best"], "'best'; wanted numbers"),
      (["--ckpt", "x", "--limit", "0"], "'0'; wanted a whole number from 1 on"),
      (["--ckpt", "x", "--output", "x"], "unrecognized arguments: --output"),
      (["--ckpt", "x", "--baselines", "gif"], "no baseline 'gif'; wanted all, none, or some of jpeg"),
      (["--ckpt", "x", "--published", "imagenet"], "on 'imagenet'; wanted one of"),
      (["--ckpt", "x", "--published", "kodak:H.264"], "no published curve 'H.264' on kodak"),
      (["--ckpt", "x", "--anchor", "VTM-17.0"], "no curve 'VTM-17.0'; there are fake, JPEG 4:2:0, WebP"),
      (["--ckpt", "x", "--bd-method", "spline"], "invalid choice: 'spline'"),
      (["--ckpt", "x", "--workers", "-1"], "'-1'; wanted a whole number"),
      (["--ckpt", "x", "--out", folder / "a.png"], "not a folder that can be written to"),
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
