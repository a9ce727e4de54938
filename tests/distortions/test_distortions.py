"""Claims about every distortion of the objective, and one outside of the package."""
import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import random_variables
from helpers.linear_stub import StandIn
from PIL import Image

from configs import nano
from mlic_jax import Codec, distortions
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.optimization_schedule import RefineError
from mlic_jax.config import CodecConfig
from mlic_jax.distortions import mse
from mlic_jax.errors import ConfigError
from mlic_jax.training import loop
from mlic_jax.training.config_schema import check_fields
from mlic_jax.training.pmap_programs import cache_key

SMALL = CodecConfig(transforms="unshuffled", N=4, M=8, num_slices=1, widths=(4, 4), hyper_widths=(4, 4), contexts=(),
                    entropy_widths=(4,), lrp_widths=())
RESEARCH = (Path(__file__).parents[2] / "docs" / "research.md").read_text()
ABSOLUTE = RESEARCH.split("## A distortion\n", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]


@pytest.fixture(name="folder")
def folder_with_a_distortion(tmp_path, monkeypatch):
  """The current directory, with the mean absolute error as own_distortions.absolute."""
  (tmp_path / "own_distortions").mkdir()
  (tmp_path / "own_distortions" / "absolute.py").write_text(ABSOLUTE)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  yield tmp_path
  for name in [name for name in sys.modules if name.startswith("own_distortions")]:
    del sys.modules[name]


@pytest.mark.parametrize("name", distortions.available())
def test_a_distortion_is_zero_for_the_image_itself_and_grows_with_the_error(name):
  distortion = distortions.find(name)
  side = max(16, distortion.MIN_SIDE)
  rng = np.random.default_rng(0)
  x = rng.uniform(size=(2, side, side, 3)).astype(np.float32)
  noise = rng.normal(size=x.shape).astype(np.float32)
  summed = lambda x_hat: ((distance := distortion.distance(x_hat, x)).sum(), distance)
  compiled = jax.jit(jax.grad(summed, has_aux=True))
  (_, none), (gradient, little), (_, much) = (
      jax.device_get(compiled(x + np.float32(amount) * noise)) for amount in (0, 0.02, 0.1))
  assert none.shape == (2,) and (np.abs(none) < 1e-5).all()
  assert (none < little).all() and (little < much).all()
  assert np.isfinite(gradient).all() and (gradient != 0).any()
  assert all(each.shape == (2,) for each in distortions.metrics_of(distortion, much).values())


def test_the_squared_error_counts_the_pixels_of_the_image_alone():
  rng = np.random.default_rng(0)
  x, x_hat = rng.uniform(size=(2, 1, 8, 8, 3)).astype(np.float32)
  inside = np.zeros((1, 8, 8, 1), np.float32)
  inside[:, :5, :7] = 1
  expected = 255**2 * np.square(x_hat - x)[:, :5, :7].mean()
  np.testing.assert_allclose(mse.distance(x_hat, x, inside), [expected], rtol=1e-5)


def config_of(folder, **changes):
  c = nano.get_config()
  c.model, c.lmbda, c.data_dir, c.holdout_every = SMALL.to_dict(), 0.01, str(folder / "images"), 3
  c.crop_size = c.eval_crop_size = 64
  c.optimizer = "adam"
  c.batch_size, c.eval_batch_size, c.num_steps, c.log_every, c.eval_images, c.warmup_steps = 2, 2, 2, 1, 0, 1
  c.update(changes)
  return c


def test_a_distortion_of_ones_own_trains_and_optimizes_latents(folder, monkeypatch, capsys):
  (folder / "images").mkdir()
  rng = np.random.default_rng(0)
  for i in range(6):
    pixels = rng.integers(0, 256, (9, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
  light = dataclasses.replace(SMALL, transforms="helpers.light_transforms", widths=())
  config = config_of(folder, distortion="own_distortions.absolute", model=light.to_dict())
  monkeypatch.setattr(loop, "build", StandIn)
  loop.train_and_evaluate(config, folder / "run")
  names, *rows = (line.split(",") for line in (folder / "run" / "metrics.csv").read_text().splitlines())
  for row in rows:
    row = dict(zip(names, row, strict=True))
    assert float(row["distortion"]) > 0
    assert float(row["loss"]) == pytest.approx(float(row["bpp"]) + 0.01 * float(row["distortion"]), rel=1e-4)

  # The codec of the same config, with the record of the run.
  record = json.loads((folder / "run" / "model" / "config.json").read_text())["training"]
  save_model(folder / "codec", light, random_variables(light), record)
  codec = Codec.load(folder / "codec", allow_custom_modules=True).with_options(refine=3)
  image = np.asarray(Image.open(folder / "images" / "0.png"))[:50, :70]
  blob = codec.encode(image)
  decoded = codec.decode(blob)
  bpp, error = 8 * len(blob) / (50 * 70), np.abs(np.float64(decoded) - image).mean()
  assert codec.optimizer.loss_of_file(image, None, blob, decoded) == pytest.approx(bpp + 0.01 * error, rel=1e-5)


def test_a_downloaded_model_does_not_run_the_distortion_that_it_names(folder):
  save_model(folder / "model", SMALL, random_variables(SMALL),
             training={"config": {"distortion": "own_distortions.absolute", "lmbda": 0.1}})
  codec, image = Codec.load(folder / "model"), np.zeros((64, 64, 3), np.uint8)
  assert codec.decode(codec.encode(image)).shape == image.shape
  with pytest.raises(RefineError, match="^[^:]*: distortion 'own_distortions.absolute' .* --allow-custom-mod") as error:
    codec.with_options(refine=1).encode(image)
  assert "\n" not in str(error.value)
  assert not any(name.startswith("own_distortions") for name in sys.modules)


@pytest.mark.parametrize("name, message", [
    ("lpips", r"no distortion 'lpips' in mlic_jax/distortions/; the nearest is '\w+', of \['ms_ssim', 'mse'\]"),
    ("own_distortions.missing", "distortion 'own_distortions.missing': no such module"),
    ("numpy.linalg", "has no distance; wanted distance, MIN_SIDE")])
def test_a_distortion_that_is_not_there_is_refused_in_one_line(folder, name, message):
  with pytest.raises(ConfigError, match=message) as error:
    check_fields(config_of(folder, distortion=name))
  assert "\n" not in str(error.value)


def test_a_step_with_a_distortion_of_ones_own_is_not_cached_on_disk(folder):
  class Model:
    config = SMALL
  assert cache_key(config_of(folder), Model) is not None
  assert cache_key(config_of(folder, distortion="own_distortions.absolute"), Model) is None
