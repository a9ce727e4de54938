"""Measures the receptive field of the transforms of a model, which works for any transforms.

If a position of y is NaN, every pixel that g_s computes from it is NaN, and if a block of pixels is NaN, so is every
position of y that g_a computes from it. That holds for any weights, because 0 * NaN is NaN. The farthest NaN gives the
halo of a tile. A shifted input shows whether the output shifts as well. A transform for which it does not, such as one
that adds an absolute position encoding, cannot be tiled. A transform in blocks shifts in steps of a block.

NaNs go through the transforms in bfloat16: the faster convolutions in float32 on CPU would spread them to neighbors
that cancel out (kernels/winograd.py). The input is small (SIDES), and the result is cached for each model.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.coding.tile_grid import TilingError
from mlic_jax.model import registry, transforms
from mlic_jax.runtime.shape_cache import shape_cached

SIDES = (16, 32, 64)      # sides of the input in positions of y; the first one that is large enough is used
PERIODS = (1, 2, 4)       # possible shift steps of a transform, in positions of y; tiles are multiples of 4
TOLERANCE = 1e-3          # tolerance for equal outputs, relative to the largest value; rounding errors are about 1e-6


class Halos(NamedTuple):
  """The halos of a tile in positions of y, which are multiples of `period`, the step of windows."""
  analysis: int     # halo of pixels for g_a, in units of STRIDE pixels
  synthesis: int    # halo of y_hat for g_s, even
  period: int = 1


def halos(module, variables: dict) -> Halos:
  """Returns the halos of a codec module (model/mlic.py) with its variables.

  TilingError for transforms that depend on the whole image, or whose output does not shift with their input."""
  if module not in _found:
    (latent, *periods), (synthesis, period) = (_measure(module, variables, name) for name in ("latent", "synthesize"))
    period = max(period, *periods)
    step = max(period, 2)    # for windows whose height is a multiple of 4, see layer_crops.py
    _found[module] = Halos(-(-latent // period) * period, -(-synthesis // step) * step, period)
  return _found[module]


_found: dict = {}


def _measure(module, variables: dict, name: str) -> tuple[int, int]:
  """Returns the reach of a transform in positions of y, and its period."""
  stride = transforms.find(module.config.transforms).STRIDE
  config, quality = module.config, 1.0 if module.config.num_rates else None
  scale, channels = (stride, 3) if name == "latent" else (1, config.M)
  structure = module.clone(transform_dtype=jnp.bfloat16)
  for side in SIDES:
    noise = np.random.default_rng(0).uniform(0, 1, (side + PERIODS[-1],) * 2 + (scale, scale, channels))
    moved_by = lambda period: noise[period:period + side, period:period + side].astype(np.float32)
    run = lambda module, blocks: _blocks(_transform(module, variables, _image(blocks), quality, name), side)
    spread, centers = [], range(side // 2 - PERIODS[-1] // 2, side // 2 + PERIODS[-1] // 2)
    for center in centers:                             # the position within a block may matter
      blocks = moved_by(0)
      blocks[center, center] = np.nan
      spread.append(np.argwhere(np.isnan(run(structure, blocks)).any(-1)))
    reach = max(int(np.abs(reached - center).max(initial=0)) for reached, center in zip(spread, centers))
    is_inside = all(reached.min(initial=1) > 0 and reached.max(initial=0) < side - 1 for reached in spread)
    if is_inside and 2 * reach + PERIODS[-1] < side:
      break
  else:
    raise TilingError(f"the transforms {config.transforms!r} reach farther than {side // 2} positions of y; wanted "
                      "transforms with a smaller receptive field, or no tiles")
  plain = run(module, moved_by(0))
  for period in PERIODS:
    inside, moved = slice(reach, side - reach - period), slice(reach + period, side - reach)
    one, other = run(module, moved_by(period))[inside, inside], plain[moved, moved]
    if np.abs(one - other).max() <= TOLERANCE * np.abs(other).max():
      return reach, period
  raise TilingError(f"the transforms {config.transforms!r} change if their input is shifted by {PERIODS[-1]} positions "
                    "of y; wanted shift-invariant transforms, or no tiles")


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def _transform(module, variables, x, quality, name):
  return module.apply(variables, x, quality, method=name)


def _image(blocks: np.ndarray) -> np.ndarray:
  """Joins blocks (side, side, scale, scale, C) to an image (1, side * scale, side * scale, C)."""
  side, _, scale, _, channels = blocks.shape
  return blocks.transpose(0, 2, 1, 3, 4).reshape(1, side * scale, side * scale, channels)


def _blocks(x: jax.Array, side: int) -> np.ndarray:
  """Splits an image (1, side * scale, side * scale, C) into blocks (side, side, scale * scale * C)."""
  scale = x.shape[1] // side
  blocks = np.asarray(x).reshape(side, scale, side, scale, -1)
  return blocks.transpose(0, 2, 1, 3, 4).reshape(side, side, -1)
