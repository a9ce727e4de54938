"""The compiled functions of a codec for tiles: the transforms of windows, and y_hat at the end of the passes.

They differ from those of whole images (jit_functions.py) because g_a and g_s read the window of a tile (tile_grid.py),
and h_a and the entropy model the tile alone. All tiles of an image share them.
"""
import jax

from mlic_jax.coding.jit_functions import to_uint8
from mlic_jax.model import registry
from mlic_jax.runtime.shape_cache import shape_cached


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def analyze_window(module, variables, window, corner, size, quality):
  """A window (1, H, W, 3) uint8 -> y (1, h, w, M) and z (1, h/4, w/4, N) of its tile, for the encoder.

  `size` is (h, w); `corner` int32 (2,), the row and column of the tile in the window, in positions of y."""
  def analyze(model):
    y = model.latent(window / 255, quality)
    y = jax.lax.dynamic_slice(y, (0, *corner, 0), (1, *size, y.shape[-1]))
    return y, model.hyper_latent(y)
  return module.apply(variables, method=analyze)


@shape_cached(size=3, module=0, describe=registry.description)
def finish_tile(module, variables, k, hyper, state, symbols):
  """Symbols of the non-anchors of the last slice -> y_hat (1, h, w, M)."""
  return module.apply(variables, k, hyper, state, symbols, method="finish_slice").decoded


@shape_cached(size=2, module=0, describe=registry.description)
def synthesize_window(module, variables, y_hat, quality):
  """y_hat (1, h, w, M) of a window -> its pixels (1, H, W, 3) uint8."""
  return to_uint8(module.apply(variables, y_hat, quality, method="synthesize"))
