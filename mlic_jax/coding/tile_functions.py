"""The jitted functions of a codec for tiles: the transforms of windows, and y_hat after the last pass.

They differ from those of whole images (jit_functions.py), because g_a and g_s read the window of a tile (tile_grid.py),
while h_a and the entropy model read only the tile. All tiles of an image share them.
"""
import jax
import jax.numpy as jnp

from mlic_jax.coding import layer_crops
from mlic_jax.coding.jit_functions import to_uint8
from mlic_jax.model import registry
from mlic_jax.runtime.shape_cache import shape_cached


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def analyze_window(module, variables, window, corner, size, quality):
  """Maps windows (B, H, W, 3) uint8 to y (B, h, w, M) and z (B, h/4, w/4, N) of their tiles. Encoder only.

  `size` is (h, w), and `corner`, int32 (B, 2), is row and column of each tile in its window, in positions of y."""
  def analyze(model):
    y = model.latent(window / 255, quality)
    tiles = [jax.lax.dynamic_slice(y, (i, *corner[i], 0), (1, *size, y.shape[-1])) for i in range(len(window))]
    y = jnp.concatenate(tiles)
    return y, model.hyper_latent(y)
  return module.apply(variables, method=analyze)


@shape_cached(size=3, module=0, describe=registry.description)
def finish_tile(module, variables, k, hyper, state, symbols):
  """Maps the symbols of the non-anchors of the last slice to y_hat (1, h, w, M)."""
  return module.apply(variables, k, hyper, state, symbols, method="finish_slice").decoded


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def synthesize_tiles(module, variables, y_hat, quality, sizes, corners):
  """Maps y_hat (B, h, w, M) of windows to the pixels of their tiles (B, H, W, 3) uint8; see layer_crops.py."""
  return to_uint8(module.apply(
      variables, method=lambda model: layer_crops.synthesize(model, y_hat, quality, sizes, corners)))
