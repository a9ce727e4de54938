"""Every pair of transforms inherits these tests by being a file in mlic_jax/model/transforms/."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables

from mlic_jax.coding.codec import Codec
from mlic_jax.coding.model_directory import save_model
from mlic_jax.config import CodecConfig
from mlic_jax.model import transforms
from mlic_jax.model.describe import describe
from mlic_jax.model.mlic import build
from mlic_jax.training.step import COMPILE_QUICKLY

SMALL = CodecConfig(N=8, M=8, num_slices=2, contexts=(), entropy_widths=(8,), lrp_widths=())
FIELDS = dict(hpcm=dict(widths=(8, 8, 8)))  # of those whose sizes do not follow from N and M


def small(name: str) -> CodecConfig:
  return dataclasses.replace(SMALL, transforms=name, **FIELDS.get(name, {}))


def pair(config: CodecConfig, remat: bool = False):
  """g_s(g_a(x)), and y, from the parameters of both."""
  chosen = transforms.find(config.transforms)

  def there_and_back(params, x):
    y = chosen.Analysis(config, remat).apply({"params": params["g_a"]}, x)
    return y, chosen.Synthesis(config, remat).apply({"params": params["g_s"]}, y)
  return there_and_back


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", transforms.available())
def test_a_picture_goes_to_its_latent_and_back_in_its_own_dtype(name, dtype):
  config, stride = small(name), transforms.find(name).STRIDE
  params = jax.eval_shape(lambda: random_variables(config)["params"])
  x = jax.ShapeDtypeStruct((2, 4 * stride, 8 * stride, 3), dtype)
  y, x_hat = jax.eval_shape(pair(config), params, x)
  assert y.shape == (2, 4, 8, config.M) and x_hat.shape == x.shape and y.dtype == x_hat.dtype == dtype


@pytest.mark.parametrize("name", transforms.available())
def test_a_gradient_reaches_every_parameter_and_rematerialisation_does_not_change_it(name):
  config, stride = small(name), transforms.find(name).STRIDE
  params = {part: random_variables(config)["params"][part] for part in ("g_a", "g_s")}
  x = np.random.default_rng(0).uniform(size=(1, 4 * stride, 4 * stride, 3)).astype(np.float32)

  def gradient(remat):
    loss = lambda params: jnp.square(pair(config, remat)(params, x)[1] - x).sum()
    return jax.jit(jax.grad(loss), compiler_options=COMPILE_QUICKLY)(params)

  usual = gradient(False)
  assert all(np.any(np.abs(g) > 1e-6) for g in jax.tree.leaves(usual))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2), usual, gradient(True))


@pytest.mark.parametrize("name", transforms.available())
def test_a_training_starts_near_grey(name):
  config, chosen = small(name), transforms.find(name)
  x = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)
  start = lambda transform, x: jax.jit(transform(config).init_with_output, compiler_options=COMPILE_QUICKLY)(
      jax.random.key(0), x)[0]
  y = start(chosen.Analysis, x)
  x_hat = start(chosen.Synthesis, y)
  assert 0.05 < np.std(y) < 5 and abs(np.mean(x_hat) - 0.5) < 0.2 and np.std(x_hat) < 0.5


@pytest.mark.parametrize("name", [name for name in transforms.available() if name != "cheng2020"])  # see test_codec.py
def test_what_is_decoded_is_what_the_encoder_predicted(name, range_coder, photograph, tmp_path):
  config = small(name)
  save_model(tmp_path / "model", config, random_variables(config))
  codec = Codec.load(tmp_path / "model")
  blob, predicted = codec.encode_with_reconstruction(photograph)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  assert len(blob) > 100 and predicted.std() > 1


# The published layers, (kernel, channels in, channels out, how many positions of the coarser side a pixel has).
def elic_layers(N: int = 192, M: int = 320) -> list[tuple[int, int, int, float]]:
  unit = lambda c, at: [(1, c, c // 2, at), (3, c // 2, c // 2, at), (1, c // 2, c, at)]
  attention = lambda c, at: 6 * unit(c, at) + [(1, c, c, at)]
  return [(5, 3, N, 1 / 4), *3 * unit(N, 1 / 4), (5, N, N, 1 / 16), *3 * unit(N, 1 / 16), *attention(N, 1 / 16),
          (5, N, N, 1 / 64), *3 * unit(N, 1 / 64), (5, N, M, 1 / 256), *attention(M, 1 / 256)]


def hpcm_layers() -> list[tuple[int, int, int, float]]:
  block = lambda c, at: [(3, c // 4, c // 4, at), (1, c, 4 * c, at), (1, 4 * c, c, at)]
  return [(4, 3, 96, 1 / 4), *2 * block(96, 1 / 4), (2, 96, 192, 1 / 16), *2 * block(192, 1 / 16),
          (2, 192, 384, 1 / 64), *4 * block(384, 1 / 64), (2, 384, 320, 1 / 256)]


@pytest.mark.parametrize("name, layers, published", [("elic", elic_layers(), 255), ("hpcm", hpcm_layers(), 170)])
def test_parameters_and_multiplications_are_those_of_the_published_layers(name, layers, published):
  config = CodecConfig(transforms=name, num_slices=1, contexts=(), entropy_widths=(1,), lrp_widths=())
  parts = {part.name: part for part in describe(config)}
  kmacs = sum(size**2 * before * after * positions for size, before, after, positions in layers) / 1000
  assert round(kmacs) == published
  for part, mirrored in (("g_a", False), ("g_s", True)):
    biases = sum(before if mirrored else after for _, before, after, _ in layers)
    assert parts[part].parameters == sum(size**2 * before * after for size, before, after, _ in layers) + biases
    np.testing.assert_allclose(parts[part].kmacs, kmacs)


@pytest.mark.parametrize("fields, message", [
    (dict(transforms="elic", widths=(8, 8, 8)), "widths=(8, 8, 8), which the transforms 'elic' do not read; () is"),
    (dict(transforms="elic", synthesis_width=8), "synthesis_width=8, which the transforms 'elic' do not read; 0 is"),
    (dict(transforms="hpcm", synthesis_width=8), "synthesis_width=8, which the transforms 'hpcm' do not read; 0 is"),
    (dict(transforms="elic", N=1), "N=1 and M=320, at least 2 each are wanted"),
    (dict(transforms="hpcm", widths=(3, 8, 8)), "widths=(3, 8, 8), at least 4 each are wanted"),
    (dict(transforms="hpcm", widths=(8, 8)), "three widths are wanted")])
def test_a_config_that_transforms_cannot_be_built_of_is_refused_in_one_line(fields, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    build(CodecConfig(**fields))
