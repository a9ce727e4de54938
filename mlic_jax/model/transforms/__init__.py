"""Transforms: g_a and g_s, between image and latent. One file each; a config names them by file name.

A file has
  STRIDE                    pixels of the picture per position of y, along each side
  Analysis(config, remat)   g_a: x (B, H, W, 3) in [0, 1] -> y (B, H/STRIDE, W/STRIDE, M)
  Synthesis(config, remat)  g_s: y_hat (B, h, w, M) -> x_hat (B, STRIDE h, STRIDE w, 3), not clipped
                            both in the dtype of their input, but for the last layer, which should give float32
  activation_floats_per_pixel(config)  of the widest layer of the two, for the memory estimate; ValueError,
                            in one line, for a config that the transforms cannot be built of
  OPTIONS                   where it has settings of its own: a dict of their names and defaults; see parts.options
A name with a dot is an import path, so that transforms of one's own need not lie here.
"""

from types import ModuleType

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry

WANTED = ("STRIDE", "Analysis", "Synthesis", "activation_floats_per_pixel")


def available() -> list[str]:
  """The names that need no path: the modules of this folder."""
  return registry.available(__name__)


def find(name: str) -> ModuleType:
  """The transforms of that name; PartError when there are none."""
  return registry.find(name, __name__, WANTED)


def three_widths(config: CodecConfig, default: tuple[int, int, int]) -> tuple[int, ...]:
  """Channels at 1/2, 1/4 and 1/8 of the resolution: config.widths or the default. ValueError for another number."""
  if len(config.widths) not in (0, 3):
    raise ValueError(f"widths={config.widths}, three widths are wanted (at 1/2, 1/4 and 1/8) or ()")
  return config.widths or default


def refuse_unread(config: CodecConfig, *names: str) -> None:
  """ValueError when a field that the transforms of `config` do not read is not at its default."""
  for name in names:
    value, default = getattr(config, name), getattr(CodecConfig, name)
    if value != default:
      raise ValueError(f"{name}={value}, which the transforms {config.transforms!r} do not read; {default} is wanted")
