"""Crops between the layers of g_s: what a window has around its tile is dropped as soon as no later layer needs it.

    y_hat of the window --block--> crop --up--> crop --block--> crop ... --out--> pixels of the tile

The halo of a window is the sum over all layers, most of which work on more pixels and need less of it. Measured as in
receptive_field.py, on the output of each direct submodule of g_s in turn. Transforms whose submodules do not simply
follow each other give other pixels with crops, or none: the result for a small input decides whether there are crops.

Halos are even. Tiles are multiples of 4 positions, so the height of every crop is a multiple of 4 too, which the faster
convolutions of CPUs want (kernels/winograd.py).
"""
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.coding.receptive_field import TOLERANCE, Halos
from mlic_jax.coding.tile_grid import TileGrid
from mlic_jax.model import registry
from mlic_jax.runtime.shape_cache import shape_cached


class Layer(NamedTuple):
  """Where g_s may crop: the output of one of its submodules."""
  factor: int    # positions of the output per position of y_hat, along each side
  halo: int      # positions of the output that later layers need around a tile


class Crops(NamedTuple):
  """The crops of one window; all tiles of a grid have the same sizes."""
  sizes: tuple[tuple[int, int], ...]   # height and width after each crop
  corners: np.ndarray                  # int32 (layers, 2), of each crop in the output that is cropped


def crops_of(grid: TileGrid, number: int, halo: int, layers: Sequence[Layer], stride: int) -> Crops:
  """The crops of a tile of a grid in positions of y_hat, whose window has the halo `halo`; the last one leaves the
  pixels of the tile."""
  window, factor, sizes, corners = grid.window(number, halo), 1, [], []
  for layer in [*layers, Layer(stride, 0)]:
    finer = TileGrid(*(layer.factor * side for side in grid))
    inner, outer = finer.window(number, layer.halo), window.times(layer.factor // factor)
    sizes.append((inner.height, inner.width))
    corners.append(inner.within(outer)[:2])
    window, factor = inner, layer.factor
  return Crops(tuple(sizes), np.array(corners, np.int32))


def synthesize(model, y_hat: jax.Array, quality: Any, sizes: Sequence[tuple[int, int]],
               corners: jax.Array) -> jax.Array:
  """The pixels of tiles (B, H, W, 3), not clipped, from y_hat of their windows (B, h, w, M); corners (B, layers, 2)."""
  def visit(index: int, x: jax.Array, _name: str) -> jax.Array:
    return crop(x, corners[:, index], sizes[index]) if index < len(sizes) - 1 else x

  with outputs_of_layers("g_s", visit):
    x_hat = model.synthesize(y_hat, quality)
  return crop(x_hat, corners[:, -1], sizes[-1])


def crop(x: jax.Array, corners: jax.Array, size: tuple[int, int]) -> jax.Array:
  """The part (B, *size, C) of arrays (B, H, W, C); corners (B, 2) are its first row and column in each."""
  return jnp.concatenate([jax.lax.dynamic_slice(x, (i, *corners[i], 0), (1, *size, x.shape[-1]))
                          for i in range(len(x))])


def measure(module, variables: dict, halos: Halos, stride: int) -> tuple[Layer, ...]:
  """The layers of g_s after which windows are cropped; () for transforms without such. Cached for a model."""
  if module not in _measured:
    _measured[module] = _measure(module, variables, halos, stride)
  return _measured[module]


_measured: dict = {}


def _measure(module, variables: dict, halos: Halos, stride: int) -> tuple[Layer, ...]:
  side = 2 * halos.synthesis + 6
  y_hat = np.random.default_rng(0).normal(0, 1, (1, side, side, module.config.M)).astype(np.float32)
  quality = 1.0 if module.config.num_rates else None
  layers = [] if halos.period > 1 else _layers(module, variables, y_hat, quality, halos.synthesis, stride)
  return tuple(layers) if layers and _agree(module, variables, y_hat, quality, halos.synthesis, layers, stride) else ()


def _layers(module, variables: dict, y_hat: np.ndarray, quality, halo: int, stride: int) -> list[Layer]:
  """Finds the input of each layer by the pixels that a NaN reaches; [] if an output is no finer grid of y_hat."""
  side, shapes = y_hat.shape[1], list[tuple[int, ...]]()

  def note(index: int, x: jax.Array, _name: str) -> jax.Array:
    shapes.append(x.shape)
    return x

  def trace(y_hat):
    with outputs_of_layers("g_s", note):
      return module.apply(variables, y_hat, quality, method="synthesize")

  jax.eval_shape(trace, y_hat)
  factors = [shape[1] // side for shape in shapes if len(shape) == 4 and shape[1] % side == 0]
  ends = [1, *factors, stride]
  if len(factors) < len(shapes) or any(finer % coarser for coarser, finer in zip(ends, ends[1:])):
    return []
  structure, layers, previous = module.clone(transform_dtype=jnp.bfloat16), list[Layer](), Layer(1, halo)
  for index, factor in enumerate(factors):
    x_hat = np.asarray(_poisoned(structure, variables, y_hat, quality, index))[0]
    center, pixels = factor * side // 2, stride // factor
    reached = np.argwhere(np.isnan(x_hat).any(-1)) // pixels - center
    most = previous.halo * (factor // previous.factor)
    needed = int(np.abs(reached).max(initial=0))
    previous = Layer(factor, min(needed + needed % 2, most))
    layers.append(previous)
  return layers


def _agree(module, variables: dict, y_hat: np.ndarray, quality, halo: int, layers: list[Layer], stride: int) -> bool:
  """Whether a tile with crops has the pixels of the whole image."""
  side, tile = y_hat.shape[1], 2
  grid = TileGrid(side, side, tile, tile)
  number = (side // tile // 2) * (grid.columns + 1)
  window, box = grid.window(number, halo), grid.box(number).times(stride)
  crops = crops_of(grid, number, halo, layers, stride)
  whole = np.asarray(_poisoned(module, variables, y_hat, quality, -1))[0][box.slices]
  try:
    cropped = _cropped(module, variables, y_hat[0][window.slices][None], quality, crops.sizes, crops.corners[None])
  except (TypeError, ValueError):                        # of shapes that do not fit: a layer reads an earlier output
    return False
  return bool(np.abs(np.asarray(cropped)[0] - whole).max() <= TOLERANCE * np.abs(whole).max())


@shape_cached(size=2, module=0, describe=registry.description)
def _poisoned(module, variables, y_hat, quality, which):
  """x_hat with a NaN in the middle of the output of one layer; of none for -1."""
  def poison(index: int, x: jax.Array, _name: str) -> jax.Array:
    return jnp.where(which == index, x.at[:, x.shape[1] // 2, x.shape[2] // 2].set(jnp.nan), x)

  with outputs_of_layers("g_s", poison):
    return module.apply(variables, y_hat, quality, method="synthesize")


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def _cropped(module, variables, y_hat, quality, sizes, corners):
  return module.apply(variables, method=lambda model: synthesize(model, y_hat, quality, sizes, corners))


def outputs_of_layers(transform: str, visit: Callable[[int, jax.Array, str], jax.Array]):
  """A context in which `visit` is called with the number, the output and the name of each direct submodule of g_a or
  g_s, and returns what takes the place of the output."""
  numbers = itertools.count()

  def intercept(function, arguments, options, context):
    output = function(*arguments, **options)
    path = context.module.path
    if len(path) == 2 and path[0] == transform and context.method_name == "__call__":
      return visit(next(numbers), output, path[1])
    return output

  return nn.intercept_methods(intercept)
