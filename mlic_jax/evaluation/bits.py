"""Where the bits of a picture go: by the likelihoods of the model, per place and slice."""
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mlic_jax.checkpoint import load_model
from mlic_jax.model import build


class BitsMap(NamedTuple):
  """Bits of a picture that is padded to multiples of 64; h = H/16, w = W/16."""
  slices: np.ndarray   # (h, w, S), of y
  z: np.ndarray        # (h/4, w/4), the side information


def of_checkpoint(path: str | os.PathLike) -> Callable[[np.ndarray, float | None], BitsMap]:
  """A function of an image (H, W, 3) uint8 and a quality.

  The parameters of the checkpoint are read when it is first called, and held a second time beside the codec's.
  """
  @functools.cache
  def load():
    model = load_model(path)
    return build(model.config), jax.device_put(model.variables), model.config.num_slices

  def bits_of(image: np.ndarray, quality: float | None) -> BitsMap:
    module, variables, num_slices = load()
    padding = [(0, -side % 64) for side in image.shape[:2]]
    x = np.pad(image, (*padding, (0, 0)), mode="edge")[None]
    y_bits, z_bits = _bits(module, variables, x, None if quality is None else np.float32(quality))
    y_bits, z_bits = np.asarray(y_bits[0]), np.asarray(z_bits[0])
    return BitsMap(y_bits.reshape(*y_bits.shape[:2], num_slices, -1).sum(-1), z_bits.sum(-1))

  return bits_of


@functools.partial(jax.jit, static_argnums=0)
def _bits(module, variables, x, quality):
  out = module.apply(variables, x / 255, quality)        # x_hat is not asked for, so g_s is not run
  return out.y_bits, out.z_bits
