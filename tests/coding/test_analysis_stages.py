"""Two stages of g_a give y of the whole image, compute early layers once, and exist only where that is right."""
import dataclasses
import functools
import sys
import types

import numpy as np
import pytest
from conftest import random_variables
from flax import linen as nn
from helpers.light_codec import CHENG, LIGHT, UNSHUFFLED

from mlic_jax.coding import analysis_stages, tile_cells, tile_functions
from mlic_jax.coding.analysis_stages import Stages
from mlic_jax.coding.receptive_field import Halos, halos
from mlic_jax.coding.tile_grid import TileGrid
from mlic_jax.coding.tiled_analysis import TiledAnalysis
from mlic_jax.model.layers import Conv
from mlic_jax.model.mlic import build

HALOS = {CHENG: Halos(4, 8, 1), UNSHUFFLED: Halos(5, 6, 1)}   # which test_receptive_field.py measures


@functools.cache
def measured(config, stride=16):
  model = build(config)
  variables = random_variables(config)
  found = HALOS.get(config) or halos(model, variables)
  return (model, variables), found, analysis_stages.measure(model, variables, found, stride)


@pytest.mark.parametrize("config, stages", [
    (CHENG, Stages(cut=2, factor=4, channels=4, first=4, second=3)),
    (UNSHUFFLED, Stages(cut=4, factor=8, channels=24, first=4, second=3))])
def test_the_cut_and_its_halos_follow_from_the_layers(config, stages):
  """Up to the second "down" of cheng2020 13 pixels, then 44; up to "fine3" of the light ones 32 pixels, then 40."""
  assert measured(config)[2] == stages


@pytest.mark.parametrize("config, batch, floats, cells", [(CHENG, 1, 2**25, 30), (UNSHUFFLED, 3, 64 * 32 * 3, 60)])
def test_y_is_that_of_the_whole_image_and_cells_are_computed_once(config, batch, floats, cells, monkeypatch):
  model, found, stages = measured(config)
  image = np.random.default_rng(0).integers(0, 256, (320, 384, 3), np.uint8)
  grid, computed, compute = TileGrid(320, 384, 64, 64), [], tile_functions.features_of_window
  monkeypatch.setattr(tile_cells, "FLOATS", floats)
  monkeypatch.setattr(tile_functions, "features_of_window",
                      lambda *arguments: computed.append(len(arguments[2])) or compute(*arguments))
  expected = np.asarray(analysis_stages._latent(*model, image[None] / np.float32(255), 2.0))[0]
  tiles = {}
  for numbers, y, z in TiledAnalysis([model], found, stages, image, grid, 16, 2.0, batch):
    assert y.shape == (batch, 4, 4, config.M) and z.shape == (batch, 1, 1, config.N)
    tiles |= dict(zip(numbers, np.asarray(y)))
  assert list(tiles) == list(range(30)) and cells <= sum(computed) < cells + 10 * batch   # batches are filled up
  for number, y in tiles.items():
    np.testing.assert_allclose(y, expected[grid.coarser(16).box(number).slices], atol=1e-5 * np.abs(expected).max())


def test_features_of_two_rows_of_tiles_are_kept_at_most():
  model, found, stages = measured(UNSHUFFLED)
  image, grid = np.zeros((640, 256, 3), np.uint8), TileGrid(640, 256, 128, 64)
  analysis, cell, held = TiledAnalysis([model], found, stages, image, grid, 16, 2.0, 1), 16 * 8 * 24 * 4, []
  for _ in analysis:
    held.append(analysis._cells.num_bytes / cell)
  assert len(held) == 20 and max(held) < 2.5 * grid.columns


# --- transforms in one stage --------------------------------------------------------------

class Branches(nn.Module):
  """A g_a whose last layer reads the output of the first one as well, which has the most multiplications."""
  config: object
  remat: bool = False

  @nn.compact
  def __call__(self, x):
    first = Conv(16, 3, stride=4, name="first")(x)
    second = Conv(16, 5, name="second")(first)
    x = Conv(16, 5, name="third")(second)
    return Conv(self.config.M, 1, stride=2, name="down")(x + first)


class Straight(Branches):
  """The same without the branch."""

  @nn.compact
  def __call__(self, x):
    for name, size, stride in ("first", 3, 4), ("second", 5, 1), ("third", 5, 1):
      x = Conv(16, size, stride=stride, name=name)(x)
    return Conv(self.config.M, 1, stride=2, name="down")(x)


class Synthesis(nn.Module):
  config: object
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat):
    b, h, w, _ = y_hat.shape
    cells = Conv(3 * 64, 1, name="cells")(y_hat).reshape(b, h, w, 8, 8, 3)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(b, 8 * h, 8 * w, 3)


@pytest.mark.parametrize("analysis, cut", [(Branches, None), (Straight, 1)])
def test_transforms_with_branches_over_the_cut_have_one_stage(monkeypatch, analysis, cut):
  name = f"my_stages.{analysis.__name__.lower()}"
  module = types.ModuleType(name)
  module.__spec__ = types.SimpleNamespace(name=name)
  module.STRIDE, module.Analysis, module.Synthesis = 8, analysis, Synthesis
  module.activation_floats_per_pixel = lambda config: 8.0
  monkeypatch.setitem(sys.modules, "my_stages", types.ModuleType("my_stages"))
  monkeypatch.setitem(sys.modules, name, module)
  _, _, stages = measured(dataclasses.replace(LIGHT, transforms=name, contexts=()), 8)
  assert (stages and stages.cut) == cut


def test_transforms_in_blocks_have_one_stage():
  model = build(CHENG)
  variables = random_variables(CHENG)
  analysis_stages._measured.pop(model, None)
  try:
    assert analysis_stages.measure(model, variables, Halos(4, 8, 2), 16) is None
  finally:
    analysis_stages._measured.pop(model, None)
