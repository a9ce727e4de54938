"""Tests of calibration: fitted shapes and factors make files smaller and change nothing else."""
import dataclasses
import json

import numpy as np
import pytest
from helpers.distribution_cases import CONFIGS, SMALL, variables_of
from PIL import Image

from mlic_jax.__main__ import main
from mlic_jax.coding import calibration, jit_functions, portable_cdf, skip_coding
from mlic_jax.coding.calibration import SHAPES, SYMBOLS, choose
from mlic_jax.coding.cdf_tables import build_table, distribution_table, row_scales
from mlic_jax.coding.checkpoint_io import Model, load_model, save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.latent_coder import LatentCoder
from mlic_jax.model.scale_table import SCALE_LEVELS, SCALE_MIN, SCALE_STEP

LIGHT = dataclasses.replace(SMALL, transforms="helpers.light_transforms", widths=())  # compiles faster


def counted(draws):
  """Counts of channels whose residuals over their predicted standard deviation are `draws`, (channels, n)."""
  counts, rng = np.zeros((SMALL.M, SCALE_LEVELS, SYMBOLS + 1), np.int32), np.random.default_rng(0)
  deviation = np.exp(rng.uniform(-1, 2, draws.shape[1]))
  level = np.ceil(np.log(deviation / SCALE_MIN) / SCALE_STEP).astype(int)
  for channel, residuals in enumerate(draws):
    np.add.at(counts, (channel, level, np.minimum(np.abs(np.rint(residuals * deviation)), SYMBOLS).astype(int)), 1)
  return counts


def test_the_shape_and_the_scale_of_known_elements_are_found():
  rng, n = np.random.default_rng(1), 60_000
  draws = np.stack([rng.laplace(0, 0.5**0.5, n), rng.normal(0, 1, n), rng.normal(0, 1.2, n), rng.normal(0, 0.85, n)])
  found = choose(SMALL, [counted(draws)])
  np.testing.assert_array_equal(np.array(SHAPES)[found.shapes[:4]], [1.0, 2.0, 2.0, 2.0])
  np.testing.assert_array_equal(found.shifts[1:4], np.rint(np.log([1, 1.2, 0.85]) / SCALE_STEP))
  assert found.after[0] < found.before[0]


def test_gaussian_elements_gain_nothing():
  draws = np.random.default_rng(2).normal(0, 1, (SMALL.M, 20_000))
  found = choose(SMALL, [counted(draws)])
  assert 0.997 < found.after[0] / found.before[0] <= 1


def test_a_calibrated_model_writes_smaller_files_of_the_same_images(tmp_path, photograph, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  save_model("model", LIGHT, variables_of(LIGHT), training={"step": 7})
  (tmp_path / "images").mkdir()
  Image.fromarray(photograph).save("images/a.png")
  Image.fromarray(photograph[:20]).save("images/too_small.png")
  run = lambda *arguments: main(["calibrate", *arguments, "--data", "images", "--allow-custom-modules"])
  arguments = "model", "--out", "calibrated", "--crop-size", "64"
  assert run(*arguments) == 0
  out = capsys.readouterr().out
  assert "rate 1: -" in out and "% bits of y on the 1 images of the fit" in out
  training = json.loads((tmp_path / "calibrated" / "config.json").read_text())["training"]
  assert training == {"step": 7, "calibration": {"images": 1, "crop_size": 64}}

  crop = photograph[:64, 33:97]
  found = calibration.fit(load_model("model", allow_custom_modules=True), [crop])
  coder = LatentCoder(load_model("calibrated", allow_custom_modules=True))
  z_symbols, passes, _ = coder.run_encoder(coder.analyze(crop, None), EncodeOptions())
  assert coder.bits(z_symbols, passes)[0].sum() == pytest.approx(found.after[0], rel=0.01)

  before, after = (Codec.load(name, allow_custom_modules=True) for name in ("model", "calibrated"))
  files = [codec.encode(crop) for codec in (before, after)]
  assert len(files[1]) < len(files[0])
  np.testing.assert_array_equal(after.decode(files[1]), before.decode(files[0]))

  assert run(*arguments) == 2 and "calibrated: already exists" in capsys.readouterr().err
  assert run("calibrated", "--out", "again") == 2
  assert "has the distribution 'generalized_gaussian'; wanted 'gaussian'" in capsys.readouterr().err
  assert run("model", "--out", "none", "--crop-size", "512") == 2
  assert "images: none of 2 images has 512x512 pixels" in capsys.readouterr().err


def test_the_bits_of_the_fit_are_those_of_the_rows_of_a_portable_file(photograph, monkeypatch):
  """The grids of portable files move elements to other rows, so that rows by the scales alone have other costs."""
  monkeypatch.setattr(portable_cdf, "SHIFTS", np.roll(portable_cdf.SHIFTS, 2))   # the first grid is that of -27/56
  model = Model("model", LIGHT, variables_of(LIGHT), build_table(LIGHT, variables_of(LIGHT)), bytes(8), None)
  crop = photograph[:64, 33:97]
  found = calibration.fit(model, [crop])
  config, variables = calibration.calibrated(model, found)
  coder = LatentCoder(Model("calibrated", config, variables, build_table(config, variables), bytes(8), None))
  shapes = range(coder.distribution.num_shapes)
  costs = np.concatenate([calibration._costs(distribution_table(coder.distribution, row_scales(), shape))
                          for shape in shapes])
  latents, origin = coder.analyze(crop, None), portable_cdf.origin_of_this_machine(config)
  bits = {True: 0.0, False: 0.0}

  def code_pass(k, anchors, positions, prior):
    symbols = np.asarray(jit_functions.symbols(latents.y, k, prior.mean, anchors))
    for portable in bits:
      coding = skip_coding.choose(coder.distribution, positions, prior, origin if portable else None, 0, False)
      bits[portable] += costs[coding.rows, np.minimum(np.abs(symbols), SYMBOLS)].sum()
    return symbols

  coder.run_passes(coder.symbols_of_z(latents), code_pass)
  assert bits[True] == pytest.approx(found.after[0], rel=1e-9)
  assert bits[False] != pytest.approx(found.after[0], rel=1e-6)


@pytest.mark.parametrize("name", ["laplace", "three Gaussians"])
def test_what_is_no_gaussian_is_refused(name, tmp_path):
  with pytest.raises(ValueError, match="wanted 'gaussian' for calibration"):
    choose(CONFIGS[name], [])
