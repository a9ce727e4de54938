"""Tests of skip coding: files, estimates, and scales that are refused."""
import re

import numpy as np
import pytest
from helpers.light_codec import LIGHT, light_model

from mlic_jax.__main__ import main
from mlic_jax.coding import bitstream
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.data.image_io import save_image
from mlic_jax.model.scale_table import scale_table


@pytest.fixture(scope="module")
def codec():
  return Codec(light_model())


@pytest.mark.parametrize("options", [{}, dict(portable=False), dict(chunked=False)])
def test_a_file_without_elements_of_small_scale_decodes_to_the_predicted_image(codec, photograph, options):
  whole, of_all = codec.with_options(**options).encode_with_reconstruction(photograph, 2)
  blob, predicted = codec.with_options(skip=0.8, **options).encode_with_reconstruction(photograph, 2)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  assert 0 < np.abs(predicted.astype(int) - of_all).max() and len(blob) < 0.9 * len(whole)
  assert bitstream.parse(blob).skipped_rows == np.searchsorted(scale_table(), 0.8)
  assert not np.array_equal(codec.decode(blob, slices=1), predicted)


def test_skipped_elements_cost_nothing_in_the_estimate_and_the_file_is_as_long_as_estimated(codec, photograph):
  skipping = codec.with_options(skip=0.8)
  blob, predicted, bits = skipping.encode_with_bits(photograph, 2)
  estimated, decoded = skipping.estimate(photograph, 2)
  np.testing.assert_array_equal(decoded, predicted)
  assert bits() == pytest.approx(estimated, rel=1e-6)
  assert 0.98 * estimated <= 8 * len(blob) <= 1.02 * estimated + 8 * 70
  y_bits, _ = skipping.element_bits(photograph, 2)
  of_all, _ = codec.element_bits(photograph, 2)
  assert 0.1 < np.mean(y_bits == 0) < 0.9 and not np.any(of_all == 0)


def test_all_elements_of_a_pass_may_be_skipped(codec, photograph):
  blob, predicted = codec.with_options(skip=200).encode_with_reconstruction(photograph, 2)
  np.testing.assert_array_equal(codec.decode(blob), predicted)


def test_a_scale_that_skips_nothing_or_everything_is_refused_in_one_line(
    tmp_path, photograph, capsys):
  save_model(tmp_path / "light", LIGHT, light_model().variables)
  model = ["--ckpt", str(tmp_path / "light"), "--allow-custom-modules"]
  save_image(tmp_path / "photo.png", photograph)
  files = [str(tmp_path / "photo.png"), str(tmp_path / "photo.mlic")]
  for scale, status in (("0.1", 2), ("256", 2), ("0.8", 0)):
    assert main(["encode", *files, *model, "--skip", scale]) == status
    err = capsys.readouterr().err
    assert status == 0 or err.count("\n") == 1 and "wanted a scale of at least 0.11 and below 256" in err
  assert main(["info", files[1]]) == 0
  assert re.search(r"skipped +elements with scales up to 0\.\d+\n", capsys.readouterr().out)
  assert main(["decode", files[1], str(tmp_path / "out.png"), *model]) == 0
