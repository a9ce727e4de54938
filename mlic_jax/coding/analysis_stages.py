"""Two stages of g_a: the features after an early layer are computed once, and later layers read windows of them.

    pixels of the window of a cell --layers up to the cut--> features of the cell, kept for the tiles that read them
    features of the window of a tile --later layers--> y of the tile

Most multiplications of g_a are in its first layers, and most of its halo belongs to the later ones. In one stage the
first layers compute the whole halo for every tile. The reach of both stages is measured as in receptive_field.py, and
the cut is the layer after which a tile needs the fewest multiplications. Transforms whose submodules do not simply
follow each other are computed in one stage: the result for a small input decides.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.coding.layer_crops import outputs_of_layers
from mlic_jax.coding.receptive_field import TOLERANCE, Halos
from mlic_jax.coding.tile_grid import TileGrid
from mlic_jax.model import registry, transforms
from mlic_jax.runtime.shape_cache import shape_cached

KEPT_MAX = 16     # floats per pixel that may be kept; cheng2020 has 48 at 1/2 and 12 at 1/4 of the resolution
TILE = 1024       # pixels; the cut is chosen for tiles of this side


class Stages(NamedTuple):
  """Where g_a is cut, and the halos of both stages."""
  cut: int          # the number of the direct submodule of g_a whose output is kept
  factor: int       # pixels per position of this output, along each side
  channels: int     # of this output
  first: int        # halo of the layers up to the cut, in positions of their output
  second: int       # halo of the later layers, in positions of y


def first_stage(model, x: jax.Array, quality: Any, cut: int) -> jax.Array:
  """The features (B, H/factor, W/factor, channels) of x (B, H, W, 3) after the layer `cut`."""
  kept: list[jax.Array] = []

  def visit(index: int, output: jax.Array, _name: str) -> jax.Array:
    if index == cut:
      kept.append(output)
    return output

  with outputs_of_layers("g_a", visit):
    model.latent(x, quality)                             # XLA drops what follows the cut, because it is not used
  return kept[0]


def second_stage(model, features: jax.Array, quality: Any, stages: Stages) -> jax.Array:
  """y (B, h, w, M) of the features of `first_stage`."""
  batch, height, width, _ = features.shape
  blank = jnp.zeros((batch, height * stages.factor, width * stages.factor, 3))
  with outputs_of_layers("g_a", lambda index, output, _name: features if index == stages.cut else output):
    return model.latent(blank, quality)                  # XLA drops what precedes the cut


def measure(module, variables: dict, halos: Halos, stride: int) -> Stages | None:
  """The stages of g_a; None if it is computed in one stage. Cached for a model."""
  if module not in _measured:
    _measured[module] = _measure(module, variables, halos, stride) if halos.period == 1 else None
  return _measured[module]


_measured: dict = {}


def _measure(module, variables: dict, halos: Halos, stride: int) -> Stages | None:
  """Takes the cut with the fewest multiplications, if the result for a small image is the right one."""
  side, quality = 2 * halos.analysis + 5, 1.0 if module.config.num_rates else None
  x = np.random.default_rng(0).uniform(0, 1, (1, stride * side, stride * side, 3)).astype(np.float32)
  structure = module.clone(transform_dtype=jnp.bfloat16)   # as in receptive_field.py
  shapes, costs = _layers(module, variables, x, quality)
  best, least, reached = None, sum(costs) * _growth(stride, halos.analysis, stride), None
  for cut, shape in enumerate(shapes):
    if not (_is_grid(shape, side) and np.prod(shape) <= KEPT_MAX * x.shape[1]**2):
      continue
    if reached is None:
      reached = [_distance(each, side) for each in _reached_layers(structure, variables, x, quality)]
    factor, before, after = x.shape[1] // shape[1], sum(costs[:cut + 1]), sum(costs[cut + 1:])
    first_cost = before * _growth(factor, reached[cut], stride)
    if first_cost + after < least:
      second = _distance(_reach_of_layer(structure, variables, x, quality, cut), side)
      total = first_cost + after * _growth(stride, second, stride)
      if total < least:
        best, least = Stages(cut, factor, shape[3], reached[cut], second), total
  return best if best and _agree(module, variables, quality, best, halos.analysis, stride) else None


def _layers(module, variables: dict, x: np.ndarray, quality) -> tuple[list[tuple[int, ...]], list[float]]:
  """The shapes of the outputs of the direct submodules of g_a in the order of their calls, and their multiplications:
  the number of parameters times that of positions, as in convolutions."""
  shapes, costs, params = list[tuple[int, ...]](), list[float](), variables["params"]["g_a"]

  def note(index: int, output: jax.Array, name: str) -> jax.Array:
    shapes.append(output.shape)
    weights = sum(each.size for each in jax.tree.leaves(params.get(name, ())))
    costs.append(float(weights * np.prod(output.shape[1:3])))
    return output

  def trace(x):
    with outputs_of_layers("g_a", note):
      return module.apply(variables, x, quality, method="latent")

  jax.eval_shape(trace, x)
  return shapes, costs


def _is_grid(shape: tuple[int, ...], side: int) -> bool:
  """Whether an output has the positions of y, or a finer grid of them."""
  return len(shape) == 4 and shape[1] == shape[2] and shape[1] % side == 0


def _growth(factor: int, halo: int, stride: int) -> float:
  """Positions of windows of tiles with this halo, in positions of `factor` pixels, over those of the tiles."""
  height, width = TileGrid(3 * TILE, 3 * TILE, TILE, TILE).coarser(factor).window_size(halo)
  return height * width * factor**2 / TILE**2


def _distance(reached: jax.Array, side: int) -> int:
  """How far the reached positions (H, W) are from the middle one of side x side blocks, in these positions."""
  found, per_block = np.argwhere(np.asarray(reached)), reached.shape[0] // side
  first = side // 2 * per_block
  return int(max(first - found.min(), found.max() - (first + per_block - 1))) if len(found) else 0


@shape_cached(size=2, module=0, describe=registry.description)
def _reached_layers(module, variables, x, quality):
  """Which positions of the output of each layer a NaN in the middle block of x reaches, (H', W') bool each."""
  reached, side = [], x.shape[1] // transforms.find(module.config.transforms).STRIDE

  def visit(index: int, output: jax.Array, _name: str) -> jax.Array:
    reached.append(jnp.isnan(output).any((0, -1)))
    return output

  with outputs_of_layers("g_a", visit):
    module.apply(variables, x.at[_middle(x.shape[1], side)].set(jnp.nan), quality, method="latent")
  return reached


@shape_cached(size=2, module=0, describe=registry.description)
def _reach_of_layer(module, variables, x, quality, which):
  """Which positions of y a NaN in the middle block of the output of one layer reaches, (h, w) bool."""
  side = x.shape[1] // transforms.find(module.config.transforms).STRIDE

  def poison(index: int, output: jax.Array, _name: str) -> jax.Array:
    if not _is_grid(output.shape, side):
      return output
    return jnp.where(which == index, output.at[_middle(output.shape[1], side)].set(jnp.nan), output)

  with outputs_of_layers("g_a", poison):
    return jnp.isnan(module.apply(variables, x, quality, method="latent")).any((0, -1))


def _middle(length: int, side: int) -> tuple[slice, slice, slice]:
  """The index of the middle one of side x side blocks in an array (B, length, length, C)."""
  block = slice(side // 2 * (length // side), (side // 2 + 1) * (length // side))
  return slice(None), block, block


def _agree(module, variables: dict, quality, stages: Stages, halo: int, stride: int) -> bool:
  """Whether windows of both stages have the features and y of a whole image, at its corners and in the middle."""
  tile, tiles = 4, 2 * -(-halo // 4) + 3
  grid = TileGrid(tiles * tile, tiles * tile, tile, tile)                   # in positions of y
  cells = TileGrid(*(stride // stages.factor * side for side in grid))      # in positions of the features
  x = np.random.default_rng(1).uniform(0, 1, (1, *(stride * side for side in grid[:2]), 3)).astype(np.float32)
  features = np.asarray(_first(module, variables, x, quality, stages.cut))[0]
  y = np.asarray(_latent(module, variables, x, quality))[0]
  for number in 0, grid.num_tiles // 2, grid.num_tiles - 1:
    box, window = cells.box(number), cells.window(number, stages.first)
    part = _first(module, variables, x[0][window.times(stages.factor).slices][None], quality, stages.cut)
    if not _is_close(part[0][box.within(window).slices], features[box.slices], features):
      return False
    box, window = grid.box(number), grid.window(number, stages.second)
    part = _second(module, variables, features[window.times(stride // stages.factor).slices][None], quality, stages)
    if not _is_close(part[0][box.within(window).slices], y[box.slices], y):
      return False
  return True


def _is_close(part: jax.Array, expected: np.ndarray, whole: np.ndarray) -> bool:
  return bool(np.abs(np.asarray(part) - expected).max() <= TOLERANCE * np.abs(whole).max())


@shape_cached(size=2, module=0, describe=registry.description)
def _latent(module, variables, x, quality):
  return module.apply(variables, x, quality, method="latent")


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def _first(module, variables, x, quality, cut):
  return module.apply(variables, method=lambda model: first_stage(model, x, quality, cut))


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def _second(module, variables, features, quality, stages):
  return module.apply(variables, method=lambda model: second_stage(model, features, quality, stages))
