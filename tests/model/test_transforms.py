"""Tests of all transforms in mlic_jax/model/transforms/; a new file there is tested without changes here."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables
from helpers.in_numpy import in_numpy
from helpers.paper_models import PAPER_MODELS

from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.config import CodecConfig
from mlic_jax.model import transforms
from mlic_jax.model.complexity import describe
from mlic_jax.model.initializers import initial_variables
from mlic_jax.model.mlic import build

SMALL = CodecConfig(N=8, M=8, num_slices=1, contexts=(), entropy_widths=(8,), lrp_widths=())
# All of MLICv2, which has these transforms.
V2 = dict(M=16, num_slices=2, contexts=PAPER_MODELS["mlic_v2"].contexts, channel_widths=(8, 8), window_size=3,
          options=dict(PAPER_MODELS["mlic_v2"].options, token_blocks=1))
FIELDS = dict(hpcm=dict(widths=(8, 8, 8)),  # of those whose sizes do not follow from N and M
              token_mixing=dict(options=dict(token_blocks=1)))


def small(name: str) -> CodecConfig:
  return dataclasses.replace(SMALL, transforms=name, **FIELDS.get(name, {}))


def pair(name: str, remat: bool = False):
  """g_a and g_s."""
  chosen = transforms.find(name)
  return chosen.Analysis(small(name), remat), chosen.Synthesis(small(name), remat)


def distortion(name: str, remat: bool = False):
  """A function of the params of both transforms and of x, which returns y and x_hat as well."""
  g_a, g_s = pair(name, remat)

  def squared_error(params, x):
    y = g_a.apply(params[0], x)
    x_hat = g_s.apply(params[1], y)
    return jnp.square(x_hat - x).sum(), dict(y=y, x_hat=x_hat)
  return squared_error


@functools.cache
def started(name: str) -> dict:
  """The params with which a training starts, and for an image x their y and x_hat and the gradient of the distortion.

  Not compiled: it is hundreds of operations in many shapes."""
  side = 4 * transforms.find(name).STRIDE
  x = np.random.default_rng(0).uniform(size=(1, side, side, 3)).astype(np.float32)
  y = np.zeros((1, 4, 4, SMALL.M), np.float32)

  draw = lambda transform, of: initial_variables(lambda key: transform.init(key, of), jax.random.key(0))
  params = in_numpy(lambda: tuple(map(draw, pair(name), (x, y))))()
  gradient, outputs = in_numpy(jax.grad(distortion(name), has_aux=True))(params, x)
  return dict(params=params, gradient=gradient, x=x, **outputs)


@pytest.mark.parametrize("name", transforms.available())
def test_a_training_starts_near_gray_with_latents_of_order_one(name):
  begun = started(name)
  assert begun["y"].shape == (1, 4, 4, SMALL.M) and 0.05 < np.std(begun["y"]) < 5
  assert begun["x_hat"].shape == begun["x"].shape
  assert abs(np.mean(begun["x_hat"]) - 0.5) < 0.2 and np.std(begun["x_hat"]) < 0.5


@pytest.mark.parametrize("name", transforms.available())
def test_y_and_the_image_of_any_sides_are_float32_also_if_the_rest_is_bfloat16(name):
  stride, (g_a, g_s), (analysis, synthesis) = transforms.find(name).STRIDE, pair(name), started(name)["params"]
  x = jax.ShapeDtypeStruct((2, 4 * stride, 8 * stride, 3), jnp.bfloat16)
  y = jax.eval_shape(g_a.apply, analysis, x)
  x_hat = jax.eval_shape(g_s.apply, synthesis, jax.ShapeDtypeStruct(y.shape, jnp.bfloat16))
  assert (y.shape, x_hat.shape) == ((2, 4, 8, SMALL.M), x.shape) and y.dtype == x_hat.dtype == jnp.float32


@pytest.mark.parametrize("name", transforms.available())
def test_a_gradient_reaches_every_parameter(name):
  assert all(np.any(g != 0) for g in jax.tree.leaves(started(name)["gradient"]))


@pytest.mark.parametrize("name", transforms.available())
def test_rematerialization_has_the_same_parameters(name):
  begun = started(name)
  operations = lambda function, *args: {each.primitive for each in jax.make_jaxpr(function)(*args).eqns}
  of_blocks = [operations(distortion(name, remat), begun["params"], begun["x"]) for remat in (False, True)]
  (again,) = operations(jax.checkpoint(jnp.sin), 1.0)
  assert again not in of_blocks[0] and again in of_blocks[1]


@pytest.mark.parametrize("name", [name for name in transforms.available() if name != "cheng2020"])  # see test_codec.py
def test_what_is_decoded_is_what_the_encoder_predicted(name, photograph, tmp_path):
  config = dataclasses.replace(small(name), **V2) if name == "token_mixing" else small(name)
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
    (dict(transforms="elic", widths=(8, 8, 8)), "widths=(8, 8, 8), which the transforms 'elic' do not read; wanted ()"),
    (dict(transforms="elic", synthesis_width=8), "synthesis_width=8, which the transforms 'elic' do not read"),
    (dict(transforms="hpcm", synthesis_width=8), "synthesis_width=8, which the transforms 'hpcm' do not read"),
    (dict(transforms="token_mixing", synthesis_width=8), "synthesis_width=8, which the transforms 'token_mixing' do"),
    (dict(transforms="token_mixing", options=dict(token_expansion=0)), "token_expansion=0; wanted 1 or more"),
    (dict(transforms="token_mixing", options=dict(token_expansion=1.5)), "token_expansion=1.5; wanted an integer"),
    (dict(transforms="elic", N=1), "N=1 and M=320; wanted at least 2 each"),
    (dict(transforms="hpcm", widths=(3, 8, 8)), "widths=(3, 8, 8); wanted at least 4 each"),
    (dict(transforms="hpcm", widths=(8, 8)), "wanted three widths")])
def test_a_config_that_transforms_cannot_be_built_of_is_refused_in_one_line(fields, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    build(CodecConfig(**fields))
