"""Tests of baselines: complete files in the right format, better and larger at higher quality."""
import io
import sys

import numpy as np
import pytest
from PIL import Image

from mlic_jax.evaluation import baselines
from mlic_jax.evaluation.baselines import BASELINES, JPEG, JPEG_444, BaselineError, decode, select
from mlic_jax.metrics import psnr

rows, columns = np.mgrid[:96, :80][..., None] / 9
IMAGE = np.uint8(127 + 100 * np.sin(rows + [0, 1, 2]) * np.cos(columns * [1, 0.7, 1.3]))
FORMATS = {"jpeg": "JPEG", "jpeg444": "JPEG", "webp": "WEBP", "avif": "AVIF", "jpeg2000": "JPEG2000", "jpegxl": "JXL",
           "heic": "HEIF"}


@pytest.fixture(params=BASELINES)
def name(request):
  """Runs a test for each baseline that can run here."""
  try:
    BASELINES[request.param].check()
  except BaselineError as error:
    pytest.skip(str(error))
  return request.param


def test_a_higher_quality_costs_bytes_and_gains_psnr(name):
  noisy = np.uint8(np.clip(IMAGE + np.random.default_rng(0).normal(0, 12, IMAGE.shape), 0, 255))
  blobs = [BASELINES[name].encode(noisy, quality) for quality in BASELINES[name].qualities[::2]]
  sizes = [len(blob) for blob in blobs]
  assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
  values = [psnr(noisy, decode(blob)) for blob in blobs]
  assert values[0] + 2 < values[-1]


def test_a_blob_is_a_complete_file_of_the_same_size_in_pixels(name):
  image = Image.open(io.BytesIO(BASELINES[name].encode(IMAGE[:33, :17], 50)))
  assert (image.format, image.size) == (FORMATS[name], (17, 33))


def test_the_sweep_is_rising_and_within_what_the_codec_takes(name):
  qualities = BASELINES[name].qualities
  assert list(qualities) == sorted(set(qualities)) and all(each in BASELINES[name].all_qualities for each in qualities)
  for extreme in BASELINES[name].all_qualities[0], BASELINES[name].all_qualities[-1]:
    assert decode(BASELINES[name].encode(IMAGE, extreme)).shape == IMAGE.shape


def test_a_file_is_the_same_when_written_again(name):
  assert BASELINES[name].encode(IMAGE, 50) == BASELINES[name].encode(IMAGE, 50)


def test_a_quality_of_jpeg_2000_is_a_hundredth_of_a_bit_per_pixel():
  noise = np.uint8(np.random.default_rng(0).integers(0, 256, (128, 128, 3)))
  for quality in 100, 400:                               # OpenJPEG stays below, by what is left of a code block
    bpp = 8 * len(BASELINES["jpeg2000"].encode(noise, quality)) / 128**2
    assert 0.8 * quality / 100 < bpp <= 1.01 * quality / 100


def test_jpeg_halves_the_chroma_unless_told_otherwise():
  sampling = {baseline.name: Image.open(io.BytesIO(baseline.encode(IMAGE, 50))).layer[0][1:3]
              for baseline in (JPEG, JPEG_444)}
  assert sampling == {"JPEG 4:2:0": (2, 2), "JPEG 4:4:4": (1, 1)}


def test_huffman_tables_are_optimized():
  plain = io.BytesIO()
  Image.fromarray(IMAGE).save(plain, "JPEG", quality=50, subsampling="4:2:0")
  assert len(JPEG.encode(IMAGE, 50)) < len(plain.getvalue())


def test_names_tell_the_baselines_apart():
  assert len({baseline.name for baseline in BASELINES.values()}) == len(BASELINES)


def test_baselines_are_chosen_by_name_in_a_fixed_order():
  assert select(("webp", "jpeg")) == ([BASELINES["jpeg"], BASELINES["webp"]], [])
  assert select(("none",)) == ([], [])
  with pytest.raises(BaselineError, match="no baseline 'gif'; wanted all, none, or some of jpeg, "):
    select(("jpeg", "gif"))


def test_a_missing_package_is_one_line_when_named_and_left_out_of_all(monkeypatch):
  monkeypatch.setitem(sys.modules, "pillow_heif", None)  # what importlib takes for "not there"
  monkeypatch.setattr(baselines, "BASELINES", {each: BASELINES[each] for each in ("jpeg", "heic")})
  with pytest.raises(BaselineError, match="HEIC 4:4:4: needs the package pillow-heif .*; pip install ") as error:
    select(("heic",))
  assert "\n" not in str(error.value)
  ready, missing = select(("all",))
  assert [each.name for each in ready] == ["JPEG 4:2:0"] and missing == [f"left out {error.value}"]
