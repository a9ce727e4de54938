"""From a codec and photographs to figures, a table, results.json and a plot; what is refused, and how.

The codec here is a stand-in with the interface of mlic_jax.Codec, which stores JPEG: what eval.py says of it
can be checked by hand.
"""
import json
import math
import types

import numpy as np
import pytest
from PIL import Image

import eval as evaluation_script
import mlic_jax
from mlic_jax.checkpoint import CheckpointError
from mlic_jax.evaluation import baselines, data, plots, rd
from mlic_jax.evaluation.metrics import psnr
from mlic_jax.images import ImageError, save_image

rows, columns = np.mgrid[:70, :100][..., None] / 9
IMAGE = np.uint8(127 + 100 * np.sin(rows + [0, 1, 2]) * np.cos(columns * [1, 0.7, 1.3]))
FIGURES = {"bytes", "bpp", "bpp_estimated", "psnr", "ms_ssim", "encode_s", "decode_s"}


class FakeCodec:
  """JPEG of quality 10 * quality, whose estimate is always 40 bits below the file."""
  name = "fake"
  qualities = (1, 2, 3, 4, 5, 6)
  config = types.SimpleNamespace(to_dict=lambda: {"M": 1})

  def __init__(self):
    self.encoded = []                                    # (image shape, quality) of every call

  @classmethod
  def load(cls, path):
    if path == "missing":
      raise CheckpointError("missing: no such directory; wanted a model directory")
    return cls()

  def encode_with_reconstruction(self, image, quality):
    self.encoded.append((image.shape, quality))
    blob = baselines.encode_jpeg(image, int(10 * (quality or 5)))
    return blob, baselines.decode(blob)

  def decode(self, blob):
    return baselines.decode(blob)

  def estimate(self, image, quality):
    blob = baselines.encode_jpeg(image, int(10 * (quality or 5)))
    return 8.0 * len(blob) - 40, baselines.decode(blob)


class SingleRateCodec(FakeCodec):
  qualities = (None,)


class WrongDecoder(FakeCodec):
  def decode(self, blob):
    image = baselines.decode(blob)
    image[3, 4, 1] ^= 1                                  # one sample, by one
    return image


class CoderIsNotToBeUsed(FakeCodec):
  def encode_with_reconstruction(self, image, quality):
    raise AssertionError("--estimate codes")


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
  result = rd.evaluate_image(codec, "photo", IMAGE, 3)
  blob, reconstruction = codec.encode_with_reconstruction(IMAGE, 3)
  assert (result.name, result.height, result.width, result.bytes) == ("photo", 70, 100, len(blob))
  assert result.bpp == 8 * len(blob) / 7000
  assert result.bpp_estimated == pytest.approx(result.bpp - 40 / 7000)
  assert result.psnr == psnr(IMAGE, reconstruction)
  assert result.ms_ssim is None                          # 70 pixels are too few
  assert result.encode_s > 0 and result.decode_s > 0


def test_a_decoder_that_differs_in_one_sample_is_caught_and_the_image_named():
  with pytest.raises(rd.ReconstructionMismatch, match=r"photo at quality 3: 0.01% of the decoded pixels"):
    rd.evaluate_image(WrongDecoder(), "photo", IMAGE, 3)


def test_a_file_that_does_not_decode_is_caught_and_the_image_named():
  codec = FakeCodec()
  codec.decode = lambda blob: (_ for _ in ()).throw(mlic_jax.BitstreamError("the file is damaged"))
  with pytest.raises(rd.ReconstructionMismatch, match="photo at quality 3: the file is damaged"):
    rd.evaluate_image(codec, "photo", IMAGE, 3)


def test_an_estimate_has_no_bytes_and_no_times_and_does_not_code():
  result = rd.estimate_image(CoderIsNotToBeUsed(), "photo", IMAGE, 3)
  assert (result.bytes, result.bpp, result.encode_s, result.decode_s) == (None,) * 4
  assert result.bpp_estimated > 0 and result.psnr > 20


def test_a_baseline_is_measured_on_the_same_terms():
  result = rd.evaluate_baseline(baselines.JPEG, "photo", IMAGE, 30)
  learned = rd.evaluate_image(FakeCodec(), "photo", IMAGE, 3)
  assert (result.bytes, result.bpp, result.psnr) == (learned.bytes, learned.bpp, learned.psnr)
  assert result.bpp_estimated is None


def test_a_baseline_that_cannot_hold_an_image_is_one_line():
  wide = np.zeros((1, 16384, 3), np.uint8)
  with pytest.raises(ImageError, match="wide: WebP cannot hold 16384x1 pixels"):
    rd.evaluate_baseline(baselines.WEBP, "wide", wide, 30)


# --- many images ---------------------------------------------------------------------

def test_a_mean_counts_each_image_once_and_skips_what_an_image_does_not_have():
  small = rd.ImageResult("a", 10, 10, 100, 8.0, 7.0, 30.0, None, 1.0, 2.0)
  large = rd.ImageResult("b", 1000, 1000, 125000, 1.0, 0.5, 40.0, 0.9, 3.0, 4.0)
  assert rd.mean([small, large]) == {"bytes": 62550, "bpp": 4.5, "bpp_estimated": 3.75, "psnr": 35.0,
                                     "ms_ssim": 0.9, "encode_s": 2.0, "decode_s": 3.0}
  assert rd.mean([small])["ms_ssim"] is None


def test_each_new_padded_size_is_run_once_before_it_is_timed():
  codec = FakeCodec()
  rd.evaluate_codec(codec, (2, 5), photographs(IMAGE[:64, :64], IMAGE[:20, :30], IMAGE[:65]))
  small, tiny, large = (64, 64, 3), (20, 30, 3), (65, 100, 3)
  assert codec.encoded == [(small, 2), (small, 2), (small, 5), (tiny, 2), (tiny, 5),
                           (large, 2), (large, 2), (large, 5)]


def test_the_baselines_come_as_one_entry_per_quality():
  calls = []
  entries = rd.evaluate_baselines(photographs(IMAGE, IMAGE[:30]), lambda: calls.append(1))
  assert len(calls) == 2
  assert [(entry["name"], entry["quality"]) for entry in entries] == [
      (each.name, quality) for each in baselines.BASELINES for quality in each.qualities]
  assert [image["name"] for image in entries[0]["images"]] == ["photo0.png", "photo1.png"]


# --- curves --------------------------------------------------------------------------

ANCHOR = rd.Curve("JPEG", np.array([0.2, 0.4, 0.8, 1.6]), np.array([26.0, 29.0, 32.0, 35.0]))


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3])
def test_the_bd_rate_of_a_curve_shifted_in_rate_is_the_shift(factor):
  shifted = rd.Curve("shifted", ANCHOR.bpp * factor, ANCHOR.psnr)
  result = rd.bd_rate(shifted, ANCHOR)
  assert result["percent"] == pytest.approx(100 * (factor - 1))
  assert (result["checkpoint"], result["anchor"], result["overlap_db"]) == ("shifted", "JPEG", [26.0, 35.0])


def test_the_bd_rate_does_not_mind_an_anchor_with_a_wider_sweep():
  short = rd.Curve("short", ANCHOR.bpp[1:3] * 0.7, ANCHOR.psnr[1:3])
  assert rd.bd_rate(short, ANCHOR)["percent"] == pytest.approx(-30)


@pytest.mark.parametrize("bpp, psnr_db, reason", [
    ([0.5], [30.0], "one point is no curve"),
    ([0.5, 0.9], [30.0, 29.0], "PSNR does not rise"),
    ([0.5, 0.9], [30.0, 41.0], "too little overlap: 30.0 to 41.0 dB against 26.0 to 35.0 dB"),
    ([0.1, 0.2], [20.0, 22.0], "too little overlap")])
def test_there_is_no_bd_rate_without_two_rising_and_overlapping_curves(bpp, psnr_db, reason):
  result = rd.bd_rate(rd.Curve("odd", np.array(bpp), np.array(psnr_db)), ANCHOR)
  assert result["percent"] is None and reason in result["reason"]


def test_a_curve_is_interpolated_over_the_logarithm_of_the_rate_and_never_beyond_its_ends():
  assert ANCHOR.psnr_at(0.4) == pytest.approx(29)
  assert ANCHOR.psnr_at(0.4 * math.sqrt(2)) == pytest.approx(30.5)
  assert ANCHOR.psnr_at(0.19) is None and ANCHOR.psnr_at(1.7) is None


def test_the_plot_names_every_curve_beside_it_and_no_two_names_overlap(tmp_path):
  curves = [rd.Curve("nano", ANCHOR.bpp / 2, ANCHOR.psnr),
            rd.Curve("point", np.array([0.8]), np.array([33.0]))]
  close = rd.Curve("WebP", ANCHOR.bpp, ANCHOR.psnr + 0.01)
  figure = plots.rd_figure(curves, [ANCHOR, close], "title")
  heights = {text.get_text(): text.xyann[1] for text in figure.axes[0].texts}
  assert set(heights) == {"nano", "point", "JPEG", "WebP"}
  assert min(np.diff(sorted(heights.values()))) > 0.3    # dB, of a range of about 10
  plots.save_rd_plot(tmp_path / "rd.png", curves, [ANCHOR, close], "title")
  assert Image.open(tmp_path / "rd.png").size[0] > 800
  assert [path.name for path in tmp_path.iterdir()] == ["rd.png"]


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
    ("tfds:mnist", "not prepared in .*; prepare it with `tfds build mnist`"),
    ("tfds:no_such_dataset", "Dataset no_such_dataset not found")])
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
    assert entry["name"] == "fake" and entry["config"] == {"M": 1}
    assert [image["name"] for image in entry["images"]] == ["a.png", "b.png"]
    assert all(set(image) == FIGURES | {"name", "height", "width"} for image in entry["images"])
    assert set(entry["mean"]) == FIGURES
    assert entry["mean"]["bpp"] == pytest.approx(np.mean([image["bpp"] for image in entry["images"]]))
  assert {entry["name"] for entry in results()["baselines"]} == {"JPEG 4:2:0", "WebP"}
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rd.png", "results.json"]


def test_a_codec_that_is_jpeg_gains_nothing_on_jpeg(run, results):
  _, out, _ = run("--ckpt", "x")
  against = {rate["anchor"]: rate["percent"] for rate in results()["bd_rates"]}
  assert abs(against["JPEG 4:2:0"]) < 3 < abs(against["WebP"])
  assert "BD-rate against JPEG 4:2:0: " in out and "times exclude compilation" in out
  for heading in ["quality", "bpp", "estimated", "PSNR", "MS-SSIM", "encode s", "decode s", "JPEG", "WebP"]:
    assert heading in out


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


def test_single_rate_checkpoints_are_one_entry_each_without_a_bd_rate(run, results):
  status, out, _ = run("--ckpt", "x", "y", codec=SingleRateCodec)
  assert status == 0
  assert [entry["quality"] for entry in results()["checkpoints"]] == [None, None]
  assert {rate["percent"] for rate in results()["bd_rates"]} == {None}
  assert "one point is no curve" in out


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
      (["--ckpt", "x", "--out", folder / "a.png"], "not a folder that can be written to"),
      ([], "required: --ckpt")]:
    status, stdout, stderr = run(*arguments)
    assert status == 2 and message in stderr and stderr.count("\n") == 1 and not stdout, (arguments, stderr)
    assert not (tmp_path / "out").exists()


def test_qualities_of_a_single_rate_checkpoint_are_refused(run):
  status, _, stderr = run("--ckpt", "x", "--qualities", "2", codec=SingleRateCodec)
  assert status == 2 and "fake has a single rate" in stderr


def test_a_broken_image_among_good_ones_is_named_and_nothing_is_written(run, folder, tmp_path):
  (folder / "ab.png").write_bytes((folder / "a.png").read_bytes()[:200])
  status, _, stderr = run("--ckpt", "x")
  assert status == 2 and "ab.png: cannot be read as an image" in stderr and stderr.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_a_wrong_decoder_ends_the_run_with_status_1_and_the_name_of_the_image(run, tmp_path):
  status, _, stderr = run("--ckpt", "x", codec=WrongDecoder)
  assert status == 1 and stderr.startswith("eval.py: a.png at quality 1: ") and stderr.count("\n") == 1
  assert not (tmp_path / "out").exists()
