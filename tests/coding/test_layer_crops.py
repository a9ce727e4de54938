"""Crops between the layers of g_s leave the pixels of the tile alone, and there are none where they would not."""
import dataclasses
import sys
import types

import numpy as np
import pytest
from conftest import random_variables
from flax import linen as nn
from helpers.in_numpy import in_numpy
from helpers.light_codec import LIGHT, UNSHUFFLED

from mlic_jax.coding import layer_crops
from mlic_jax.coding.layer_crops import Layer, crops_of
from mlic_jax.coding.receptive_field import halos
from mlic_jax.coding.tile_grid import TileGrid
from mlic_jax.model.layers import Conv, ConvTranspose
from mlic_jax.model.mlic import build


def layers_of(config, variables, stride=16):
  model = build(config)
  return model, layer_crops.measure(model, variables, halos(model, variables), stride)


def test_the_halo_shrinks_by_what_each_layer_looks_at():
  """1x1, 2 blocks of 3x3 and 1x1 at 1/16 of the resolution, 5 blocks and 1x1 at 1/8; to the next even number."""
  _, layers = layers_of(UNSHUFFLED, random_variables(UNSHUFFLED))
  assert layers == (*((1, halo) for halo in (6, 4, 4, 4)), *((2, halo) for halo in (4, 4, 2, 2, 0, 0)))


@pytest.fixture(scope="module")
def image():
  """A model, its variables and layers, y_hat (1, 24, 24, M) and the image of it."""
  variables = random_variables(UNSHUFFLED)
  model, layers = layers_of(UNSHUFFLED, variables)
  y_hat = np.random.default_rng(0).normal(0, 1, (1, 24, 24, UNSHUFFLED.M)).astype(np.float32)
  synthesize = in_numpy(lambda variables, y_hat: model.apply(variables, y_hat, 2, method="synthesize"))
  return model, variables, layers, y_hat, synthesize(variables, y_hat)[0]


@pytest.mark.parametrize("number", [0, 4, 7, 8])
def test_every_tile_has_the_pixels_of_the_whole_image(image, number):
  model, variables, layers, y_hat, x_hat = image
  grid = TileGrid(24, 24, 8, 8)
  crops = crops_of(grid, number, 6, layers, 16)
  window = y_hat[0][grid.window(number, 6).slices][None]
  tile = in_numpy(lambda variables: model.apply(variables, method=lambda model: layer_crops.synthesize(
      model, window, 2, crops.sizes, crops.corners[None])))(variables)
  whole = x_hat[grid.box(number).times(16).slices]
  np.testing.assert_allclose(tile[0], whole, atol=1e-5 * np.abs(whole).max())
  assert tile.shape == (1, 128, 128, 3)


def test_windows_of_all_tiles_have_the_same_sizes_and_lie_in_each_other():
  grid, layers = TileGrid(40, 56, 8, 8), (Layer(1, 6), Layer(2, 8), Layer(2, 2), Layer(8, 2))
  found = [crops_of(grid, number, 8, layers, 16) for number in range(grid.num_tiles)]
  assert len({each.sizes for each in found}) == 1 and found[0].sizes[-1] == (128, 128)
  assert all((each.corners >= 0).all() for each in found)
  sides = [24, *(side for side, _ in found[0].sizes)]
  for (factor, _), before, size, index in zip([*layers, (16, 0)], sides, sides[1:], range(5)):
    finer = factor // (1, 1, 2, 2, 8)[index]
    assert all(each.corners[index, 0] + size <= before * finer for each in found)


class Analysis(nn.Module):
  config: object
  remat: bool = False

  @nn.compact
  def __call__(self, x):
    return Conv(self.config.M, 1, stride=4, name="down")(x)


class Branches(nn.Module):
  """A g_s whose last layer reads an output before the one before it."""
  config: object
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat):
    first = Conv(8, name="first")(y_hat)
    second = Conv(8, name="second")(first)
    x = ConvTranspose(8, 2, name="up0")(first + second)
    return ConvTranspose(3, 2, name="up1")(x)


def test_a_transform_with_branches_has_no_crops(monkeypatch):
  module = types.ModuleType("my_branches.transforms")
  module.__spec__ = types.SimpleNamespace(name=module.__name__)
  module.STRIDE, module.Analysis, module.Synthesis = 4, Analysis, Branches
  module.activation_floats_per_pixel = lambda config: 8.0
  monkeypatch.setitem(sys.modules, "my_branches", types.ModuleType("my_branches"))
  monkeypatch.setitem(sys.modules, module.__name__, module)
  config = dataclasses.replace(LIGHT, transforms=module.__name__, contexts=())
  assert layers_of(config, random_variables(config), 4)[1] == ()
