"""The jitted functions of a codec for tiles: the transforms of windows, and y_hat after the last pass.

They differ from those of whole images (jit_functions.py), because g_a and g_s read the window of a tile (tile_grid.py),
while h_a and the entropy model read only the tile. All tiles of an image share them.
"""
from mlic_jax.coding import analysis_stages, layer_crops
from mlic_jax.coding.jit_functions import to_uint8
from mlic_jax.model import registry
from mlic_jax.runtime.shape_cache import shape_cached


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def features_of_window(module, variables, window, corner, form, quality):
  """Maps windows (B, H, W, 3) uint8 to the features (B, h, w, C) of their cells after the first stage of g_a.

  `form` is (h, w) and the stages (analysis_stages.py). `corner`, int32 (B, 2), is row and column of each cell in its
  window, in positions of the features. Encoder only."""
  size, stages = form
  features = module.apply(
      variables, method=lambda model: analysis_stages.first_stage(model, window / 255, quality, stages.cut))
  return layer_crops.crop(features, corner, size)


@shape_cached(size=2, module=0, static=4, describe=registry.description)
def analyze_window(module, variables, window, corner, form, quality):
  """Maps windows to y (B, h, w, M) and z (B, h/4, w/4, N) of their tiles. Encoder only.

  `form` is (h, w) and the stages (analysis_stages.py), whose features the windows have; without stages they are pixels
  (B, H, W, 3) uint8. `corner`, int32 (B, 2), is row and column of each tile in its window, in positions of y."""
  size, stages = form

  def analyze(model):
    y = analysis_stages.second_stage(model, window, quality, stages) if stages else model.latent(window / 255, quality)
    y = layer_crops.crop(y, corner, size)
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
