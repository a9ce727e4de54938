"""Tests of halos: they are the reach of a transform, and a transform with unlimited reach is refused."""
import dataclasses
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables
from flax import linen as nn
from helpers.in_numpy import in_numpy
from helpers.light_codec import CHENG, LIGHT, UNSHUFFLED

from mlic_jax.coding.receptive_field import TilingError, halos
from mlic_jax.model.layers import Conv, ConvTranspose
from mlic_jax.model.mlic import build


def test_it_is_what_the_layers_of_the_papers_transforms_add_up_to():
  """Of cheng2020, in pixels: 57 of g_a; of g_s 2 convolutions at 1/16, then 1 and 5 halved to the end of 104."""
  assert halos(build(CHENG), random_variables(CHENG)) == (4, 8, 1)


def test_it_is_what_the_layers_of_the_light_transforms_add_up_to():
  """5 blocks of 3x3 at 1/8 and 2 at 1/16 of the resolution: 72 pixels."""
  assert halos(build(UNSHUFFLED), random_variables(UNSHUFFLED)) == (5, 6, 1)


def test_a_perturbation_reaches_as_far_as_the_halo_and_no_farther():
  model, variables = build(CHENG), random_variables(CHENG)
  y_hat = np.random.default_rng(0).normal(0, 1, (2, 20, 20, CHENG.M)).astype(np.float32)
  y_hat[1, :10], y_hat[1, 11:] = y_hat[0, :10], y_hat[0, 11:]
  x_hat = in_numpy(lambda variables, y_hat: model.apply(variables, y_hat, 2, method="synthesize"))(variables, y_hat)
  moved = np.abs(x_hat[1] - x_hat[0]).reshape(20, -1).max(1)   # of the rows of pixels of each row of y
  reach = 7                                              # of which the halo is the next even number
  assert halos(model, variables).synthesis == 8
  assert moved[10] > 0.1 and max(moved[:10 - reach].max(), moved[10 + reach + 1:].max()) < 1e-5
  assert max(moved[10 - reach], moved[10 + reach]) > 1e-5


class Mean(nn.Module):
  """A transform that depends on the whole image."""
  config: object
  remat: bool = False

  @nn.compact
  def __call__(self, x):
    return Conv(self.config.M, 1, stride=8, name="down")(x + x.mean((1, 2), keepdims=True))


class Positions(Mean):
  """A transform that adds an encoding of absolute positions."""

  @nn.compact
  def __call__(self, x):
    return Conv(self.config.M, 1, stride=8, name="down")(x + jnp.arange(x.shape[1])[:, None, None] / 10)


class Windows(Mean):
  """A transform that mixes blocks of 2x2 positions."""

  @nn.compact
  def __call__(self, x):
    y = Conv(self.config.M, 1, stride=8, name="down")(x)
    b, h, w, c = y.shape
    return y + jnp.repeat(jnp.repeat(y.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4)), 2, 1), 2, 2)


class Synthesis(nn.Module):
  config: object
  remat: bool = False

  @nn.compact
  def __call__(self, y_hat):
    for i in range(3):
      y_hat = ConvTranspose(8 if i < 2 else 3, 2, name=f"up{i}")(y_hat)
    return y_hat


def halos_of(monkeypatch, analysis):
  name = f"my_transforms.{analysis.__name__.lower()}"
  module = types.ModuleType(name)
  module.__spec__ = types.SimpleNamespace(name=name)
  module.STRIDE, module.Analysis, module.Synthesis = 8, analysis, Synthesis
  module.activation_floats_per_pixel = lambda config: 8.0
  monkeypatch.setitem(sys.modules, "my_transforms", types.ModuleType("my_transforms"))
  monkeypatch.setitem(sys.modules, name, module)
  config = dataclasses.replace(LIGHT, transforms=name, contexts=())
  return halos(build(config), random_variables(config))


def test_a_transform_in_blocks_moves_by_blocks(monkeypatch):
  assert halos_of(monkeypatch, Windows) == (2, 0, 2)     # 1 position, rounded up to a block


@pytest.mark.parametrize("analysis, message", [
    (Mean, "reach farther than 32 positions of y"), (Positions, "change if their input is shifted")])
def test_a_transform_that_does_not_look_everywhere_alike_or_looks_everywhere_is_refused(monkeypatch, analysis, message):
  with pytest.raises(TilingError, match=message):
    halos_of(monkeypatch, analysis)
