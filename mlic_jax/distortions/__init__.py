"""Distortions of the rate-distortion objective, one file each; a config names them by file name.

The objective is bpp + lmbda * distance(x_hat, x), for training (training/losses.py), for latent optimization
(coding/latent_optimizer.py) and for the evaluation of a training. A file has

    distance(x_hat, x, inside=None)   (B, H, W, 3) twice, x in [0, 1] -> (B,), differentiable in x_hat and at least 0.
                                      `inside` (B or 1, H, W, 1) is 1 on pixels of the image and 0 on padding; None: all
                                      are of the image. The factor of lmbda in the papers is part of the distance.
    MIN_SIDE                          smallest height and width in pixels
    metrics(distance)                 optional; {name: (B,)} for the logs, from what `distance` returned. Default:
                                      {"distortion": distance}

A name with a dot is an import path, so a distortion can live outside of this package.
"""

from collections.abc import Callable, Collection
from types import ModuleType

import jax

from mlic_jax.model import registry

REQUIRED = ("distance", "MIN_SIDE")


def available() -> list[str]:
  """Names that need no path: the modules of this folder."""
  return registry.available(__name__)


def find(name: str, allow_custom_modules: bool | Collection[str] = True) -> ModuleType:
  """Returns the distortion of that name. PartError when there is none, or when its import path is not allowed.

  allow_custom_modules: True for all import paths, False for none, or the paths that may be imported."""
  if "." in name and not (allow_custom_modules if isinstance(allow_custom_modules, bool)
                          else name in allow_custom_modules):
    raise registry.PartError(f"distortion {name!r} is a Python module, which would be run; if you trust it, add "
                             "--allow-custom-modules (in Python allow_custom_modules=True)")
  return registry.find(name, __name__, REQUIRED)


def rate_distortion(bpp: jax.Array | float, lmbda: jax.Array | float, distance: jax.Array) -> jax.Array:
  """Returns the objective, bpp + lmbda * distance; all are (B,) or scalars."""
  return bpp + lmbda * distance


def metrics_of(distortion: ModuleType, distance: jax.Array) -> dict[str, jax.Array]:
  """Returns the metrics of a distortion for the logs, (B,) each."""
  metrics: Callable = getattr(distortion, "metrics", lambda distance: {"distortion": distance})
  return metrics(distance)
