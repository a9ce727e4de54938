"""EncodeOptions: the settings of an encoder in one frozen dataclass.

    codec.encode(image, quality=3, skip=0.2, refine=100)               # options for one image
    smaller = codec.with_options(skip=0.2, refine=100)                 # options for many images
    smaller.with_options(refine=None)                                  # the same without latent optimization
"""
import dataclasses
import math
import numbers
from typing import Any

from mlic_jax.coding.optimization_schedule import RefineError, Schedule
from mlic_jax.coding.skip_coding import num_skipped_rows
from mlic_jax.coding.tile_grid import TilingError


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
  """Settings of the encoder. The decoder reads everything it needs from the file.

  Attributes:
    chunked: write one chunk for z and one for each slice, which progressive decoding needs. False writes a single
      chunk, which saves about 40 bytes.
    portable: write a file that decodes on machines whose arithmetic differs in the last bits. False: the file decodes
      only where the arithmetic is bit-identical.
    skip: do not code elements of y whose predicted scale is at most this value; they take their predicted mean
      (skip_coding.py). None codes all elements.
    use_map: do not code elements that the selection map of the model leaves out, if the model has a selection map.
    refine: latent optimization for each image (latent_optimizer.py): a number of steps, a time such as "50s", or a
      Schedule. None codes the latents of the analysis transform.
    lmbda: weight of the distortion in latent optimization, in the scale of training. None uses that of the quality,
      interpolated geometrically between rate points.

    tile: code the image in tiles of at most this many pixels per side or 1/16 more, a multiple of the padding of the
      model (tiled_coder.py); 0 codes it without tiles. None uses tiles if the image does not fit into memory.

  SkipError, RefineError and TilingError, in one line, for invalid values.
  """
  chunked: bool = True
  portable: bool = True
  skip: float | None = None
  use_map: bool = True
  refine: Schedule | int | str | None = None
  lmbda: float | None = None
  tile: int | None = None

  def __post_init__(self):
    if self.skip is not None:
      num_skipped_rows(self.skip)
    if self.refine is not None:
      object.__setattr__(self, "refine", Schedule.of(self.refine))
    if self.lmbda is not None:
      if self.refine is None:
        raise RefineError(f"lmbda={self.lmbda} has no effect without refine; wanted both or neither")
      lmbda: Any = self.lmbda
      if isinstance(lmbda, str) or not 0 < lmbda < math.inf:
        raise RefineError(f"lmbda={self.lmbda}; wanted a number above 0")
    if self.tile is not None:
      tile: Any = self.tile
      if isinstance(tile, bool) or not isinstance(tile, numbers.Integral) or tile < 0:
        raise TilingError(f"tile={tile!r}; wanted a number of pixels, or 0 for no tiles")
      if tile and self.refine is not None:
        raise TilingError(f"tile={tile} and refine={self.refine} exclude each other; wanted one of them")

  @property
  def skipped_rows(self) -> int:
    """The number of CDF rows, from the first on, whose elements are not coded."""
    return 0 if self.skip is None else num_skipped_rows(self.skip)

  def replace(self, **changes) -> "EncodeOptions":
    """Returns changed options. `refine=None` also resets `lmbda`."""
    if "refine" in changes and changes["refine"] is None:
      changes = {"lmbda": None} | changes
    return dataclasses.replace(self, **changes)

  def suffix(self) -> str:
    """Returns the suffix of the codec's name in tables and plots; "" for the default options."""
    skip = "" if self.skip is None else f", without scales up to {self.skip:g}"
    lmbda = "" if self.lmbda is None else f" for {self.lmbda:g}"
    tile = f", tiles of {self.tile}" if self.tile else ""
    return skip + tile + ("" if self.refine is None else f", refined {self.refine}{lmbda}")
