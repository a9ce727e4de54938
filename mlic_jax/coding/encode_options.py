"""EncodeOptions: the settings of an encoder, in one frozen value. No setting depends on the order in which it is made.

    codec.encode(image, quality=3, skip=0.2, refine=100)               # for one image
    smaller = codec.with_options(skip=0.2, refine=100)                 # a codec for many
    smaller.with_options(refine=None)                                  # the same without latent optimization
"""
import dataclasses
import math
from typing import Any

from mlic_jax.coding.optimization_schedule import RefineError, Schedule
from mlic_jax.coding.skip_coding import num_skipped_rows


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
  """How images are encoded. A decoder needs none of it: the file says what differs.

  Attributes:
    chunked: one chunk for z and for each slice, which progressive decoding needs; otherwise a single chunk, some 40
      bytes less.
    portable: the file decodes where the arithmetic differs in the last bits; otherwise only where it is equal bit for
      bit.
    skip: elements of y whose predicted scale is at most this are not coded and take their mean (skip_coding.py).
      None: all elements are coded.
    use_map: elements that the selection map of the model leaves out are not coded, if the model has such a map.
    refine: optimize the latents for every image (latent_optimizer.py): a number of steps, a time as "50s", or a
      Schedule. None: the latents of the analysis transform.
    lmbda: weight of the distortion in `refine`, in the scale of training. None: that of the quality, geometric between
      two rates.

  SkipError and RefineError, in one line, for values that cannot be used.
  """
  chunked: bool = True
  portable: bool = True
  skip: float | None = None
  use_map: bool = True
  refine: Schedule | int | str | None = None
  lmbda: float | None = None

  def __post_init__(self):
    if self.skip is not None:
      num_skipped_rows(self.skip)
    if self.refine is not None:
      object.__setattr__(self, "refine", Schedule.of(self.refine))
    if self.lmbda is not None:
      if self.refine is None:
        raise RefineError(f"lmbda={self.lmbda} came without refine, whose distortion it weighs")
      lmbda: Any = self.lmbda
      if isinstance(lmbda, str) or not 0 < lmbda < math.inf:
        raise RefineError(f"lmbda={self.lmbda}; wanted a number above 0")

  @property
  def skipped_rows(self) -> int:
    """How many rows of the coding table are not coded, from the first on."""
    return 0 if self.skip is None else num_skipped_rows(self.skip)

  def replace(self, **changes) -> "EncodeOptions":
    """Other options with these changes. `refine=None` takes `lmbda` with it."""
    if "refine" in changes and changes["refine"] is None:
      changes = {"lmbda": None} | changes
    return dataclasses.replace(self, **changes)

  def suffix(self) -> str:
    """What distinguishes a curve with these options in tables and plots: "" for the default."""
    skip = "" if self.skip is None else f", without scales up to {self.skip:g}"
    lmbda = "" if self.lmbda is None else f" for {self.lmbda:g}"
    return skip + ("" if self.refine is None else f", refined {self.refine}{lmbda}")
