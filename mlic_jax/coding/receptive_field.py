"""How far the transforms of a model look, measured on the transforms themselves, so that it holds for any.

A position of y that is NaN makes every pixel NaN that g_s computes from it, and a block of pixels that is NaN every
position of y that g_a computes from it, whatever the weights are: 0 * NaN is NaN. The farthest of them is the halo of a
tile. An input that is moved by one position shows whether the output moves along: a transform for which it does not,
such as one that adds an encoding of absolute positions, has no tiles. One in blocks moves in steps of a block.

NaNs are sent through the transforms in bfloat16: float32 has faster convolutions on CPU, in which they spread to
neighbors that cancel out (kernels/winograd.py). The input is small (SIDES), and the result is cached for a model.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.coding.tile_grid import TilingError
from mlic_jax.model import registry, transforms
from mlic_jax.runtime.shape_cache import shape_cached

SIDES = (16, 32, 64)      # positions of y along each side of the input, the first one that is large enough
PERIODS = (1, 2, 4)       # positions of y by which a transform may have to be moved; tiles are multiples of 4
TOLERANCE = 1e-3          # of the largest value, for equal outputs: rounding errors are some 1e-6


class Halos(NamedTuple):
  """What a tile needs around it, in positions of y: multiples of `period`, by which windows are moved."""
  analysis: int     # of pixels, which are STRIDE times as many
  synthesis: int    # of y_hat
  period: int = 1


def halos(module, variables: dict) -> Halos:
  """The halos of a codec module (model/mlic.py) with its variables.

  TilingError for transforms that look at the whole image, or whose output does not move with their input."""
  if module not in _found:
    (latent, *periods), (synthesis, period) = (_measure(module, variables, name) for name in ("latent", "synthesize"))
    period = max(period, *periods)
    _found[module] = Halos(-(-latent // period) * period, -(-synthesis // period) * period, period)
  return _found[module]


_found: dict = {}


def _measure(module, variables: dict, name: str) -> tuple[int, int]:
  """The reach of a transform in positions of y, and its period."""
  stride = transforms.find(module.config.transforms).STRIDE
  config, quality = module.config, 1.0 if module.config.num_rates else None
  scale, channels = (stride, 3) if name == "latent" else (1, config.M)
  structure = module.clone(transform_dtype=jnp.bfloat16)
  for side in SIDES:
    noise = np.random.default_rng(0).uniform(0, 1, (side + PERIODS[-1],) * 2 + (scale, scale, channels))
    moved_by = lambda period: noise[period:period + side, period:period + side].astype(np.float32)
    run = lambda module, blocks: _blocks(_transform(module, variables, _image(blocks), quality, name), side)
    spread, centers = [], range(side // 2 - PERIODS[-1] // 2, side // 2 + PERIODS[-1] // 2)
    for center in centers:                             # where a position lies in a block may matter
      blocks = moved_by(0)
      blocks[center, center] = np.nan
      spread.append(np.argwhere(np.isnan(run(structure, blocks)).any(-1)))
    reach = max(int(np.abs(reached - center).max(initial=0)) for reached, center in zip(spread, centers))
    is_inside = all(reached.min(initial=1) > 0 and reached.max(initial=0) < side - 1 for reached in spread)
    if is_inside and 2 * reach + PERIODS[-1] < side:
      break
  else:
    raise TilingError(f"the transforms {config.transforms!r} look farther than {side // 2} positions of y; wanted "
                      "transforms that look at their surroundings, or no tiles")
  plain = run(module, moved_by(0))
  for period in PERIODS:
    inside, moved = slice(reach, side - reach - period), slice(reach + period, side - reach)
    one, other = run(module, moved_by(period))[inside, inside], plain[moved, moved]
    if np.abs(one - other).max() <= TOLERANCE * np.abs(other).max():
      return reach, period
  raise TilingError(f"the transforms {config.transforms!r} give another result where their input is moved by "
                    f"{PERIODS[-1]} positions of y; wanted transforms that look everywhere alike, or no tiles")


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def _transform(module, variables, x, quality, name):
  return module.apply(variables, x, quality, method=name)


def _image(blocks: np.ndarray) -> np.ndarray:
  """(side, side, scale, scale, C) -> (1, side * scale, side * scale, C)."""
  side, _, scale, _, channels = blocks.shape
  return blocks.transpose(0, 2, 1, 3, 4).reshape(1, side * scale, side * scale, channels)


def _blocks(x: jax.Array, side: int) -> np.ndarray:
  """(1, side * scale, side * scale, C) -> (side, side, scale * scale * C)."""
  scale = x.shape[1] // side
  blocks = np.asarray(x).reshape(side, scale, side, scale, -1)
  return blocks.transpose(0, 2, 1, 3, 4).reshape(side, side, -1)
