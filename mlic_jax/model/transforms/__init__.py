"""Transforms g_a and g_s, between image and latent. Each file is one pair, and a config selects it by file name.

A file has
  STRIDE                    pixels of the image per position of y, along each side
  Analysis(config, remat)   g_a: x (B, H, W, 3) in [0, 1] -> y (B, H/STRIDE, W/STRIDE, M)
  Synthesis(config, remat)  g_s: y_hat (B, h, w, M) -> x_hat (B, STRIDE h, STRIDE w, 3), not clipped
                            both compute in the dtype of their input; the last layer should return float32
  activation_floats_per_pixel(config)  activations of the widest layer, in floats per pixel of the image, for the
                            memory estimate; ValueError in one line for a config that the transforms do not support
  CELL                      optional; side of the cells of pixels that g_s computes as channels before its last
                            pixel_shuffle. Training on TPUs compares cells (training/losses.py)
  OPTIONS                   optional; a dict of names and defaults of options; see registry.options
A name with a dot is the import path of custom transforms.
"""

from types import ModuleType

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry

REQUIRED = ("STRIDE", "Analysis", "Synthesis", "activation_floats_per_pixel")


def available() -> list[str]:
  """Return the names of the transforms of this package."""
  return registry.available(__name__)


def find(name: str) -> ModuleType:
  """Return the module of the transforms. PartError for an unknown name."""
  return registry.find(name, __name__, REQUIRED)


def cell(config: CodecConfig) -> int:
  """Return the side of the cells that g_s computes before its last pixel_shuffle; 1 where the file has no CELL."""
  return getattr(find(config.transforms), "CELL", 1)


def three_widths(config: CodecConfig, default: tuple[int, int, int]) -> tuple[int, ...]:
  """Return channels at 1/2, 1/4 and 1/8 of the resolution: config.widths or the default.

  ValueError if there are not three widths."""
  if len(config.widths) not in (0, 3):
    raise ValueError(f"got widths={config.widths}; wanted three widths (at 1/2, 1/4 and 1/8) or ()")
  return config.widths or default


def check_unused_fields(config: CodecConfig, *names: str) -> None:
  """Raise a ValueError if a field that the transforms of `config` do not read differs from its default."""
  for name in names:
    value, default = getattr(config, name), getattr(CodecConfig, name)
    if value != default:
      raise ValueError(f"got {name}={value}, which the transforms {config.transforms!r} do not read; wanted {default}")
