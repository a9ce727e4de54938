"""CodecConfig: the architecture of a codec, frozen and validated."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class CodecConfig:
  """The architecture of one codec. The defaults are MLIC++ at the size of its paper.

  Attributes:
    N: channels of z, and the default width of the transforms.
    M: channels of the latent y.
    num_slices: slices of y, coded one after the other; M / num_slices channels each.
    transforms: g_a and g_s, by file name in mlic_jax/model/transforms/, or by import path.
    widths: channels of the transforms, from fine to coarse; () means the default in their file.
    synthesis_width: channels of the first block of cheng2020's g_s, at 1/16 of the resolution; 0 means M.
    hyper_widths: hidden widths of h_s at 1/64 and at 1/32 of the resolution; () means (M, 3 M / 2).
    contexts: contexts of the entropy model, by file name in mlic_jax/model/contexts/, or by import path; () means the
      hyperprior alone.
    context_ratio: features of an attention context per channel of a slice (the channel context has twice as many).
    channel_widths: hidden widths of the channel context.
    entropy_widths: hidden widths of the networks from contexts to mean and scale.
    lrp_widths: hidden widths of the latent residual prediction; () means no prediction.
    window_size: odd side of the windows of local attention, of the kernels of local convolutions, and of the masked
      window in intra-slice softmax attention.
    distribution: distribution of y, by file name in mlic_jax/model/distributions/, or by import path.
    num_rates: number of rate points with learned gain vectors; 0 for a checkpoint of one rate.
    options: options of single contexts, transforms or distributions, {name: value}; stored as sorted pairs.
  """
  N: int = 192
  M: int = 320
  num_slices: int = 10
  transforms: str = "cheng2020"
  widths: tuple[int, ...] = ()
  synthesis_width: int = 0
  hyper_widths: tuple[int, ...] = ()
  contexts: tuple[str, ...] = ("local_attention", "global_intra_linear", "global_inter_linear", "channel")
  context_ratio: int = 2
  channel_widths: tuple[int, ...] = (192, 128)
  entropy_widths: tuple[int, ...] = (320, 256, 128)
  lrp_widths: tuple[int, ...] = (224, 128)
  window_size: int = 5
  num_rates: int = 0
  distribution: str = "gaussian"
  options: tuple[tuple[str, Any], ...] | Mapping[str, Any] = ()

  def __post_init__(self):
    frozen = lambda value: tuple(value) if isinstance(value, list) else value
    object.__setattr__(self, "options", tuple(sorted((k, frozen(v)) for k, v in dict(self.options).items())))
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(field.default, tuple):
        object.__setattr__(self, field.name, tuple(value))
      elif isinstance(field.default, str):
        if not isinstance(value, str):
          raise ValueError(f"got {field.name}={value!r}; wanted a name")
      elif isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"got {field.name}={value!r}; wanted an integer")
    for name in ("N", "M", "num_slices", "context_ratio"):
      if getattr(self, name) < 1:
        raise ValueError(f"got {name}={getattr(self, name)}; wanted at least 1")
    for name in ("num_rates", "synthesis_width"):
      if getattr(self, name) < 0:
        raise ValueError(f"got {name}={getattr(self, name)}; wanted 0 or more")
    if self.M % self.num_slices:
      raise ValueError(f"M={self.M} does not divide into num_slices={self.num_slices} equal slices")
    if self.slice_channels % 2 and self.contexts:
      raise ValueError(f"M / num_slices = {self.slice_channels} channels per slice; attention wants an even number")
    for name in self.contexts:
      if not isinstance(name, str) or self.contexts.count(name) > 1:
        raise ValueError(f"got contexts={self.contexts}; wanted different names")
    if len(self.hyper_widths) not in (0, 2):
      raise ValueError(f"got hyper_widths={self.hyper_widths}; wanted two widths (at 1/64 and 1/32) or ()")
    if self.window_size % 2 == 0 or self.window_size < 3:
      raise ValueError(f"got window_size={self.window_size}; wanted an odd number of 3 or more")

  @property
  def slice_channels(self) -> int:
    """Number of channels of one slice, Cs."""
    return self.M // self.num_slices

  @property
  def hyper_synthesis_widths(self) -> tuple[int, ...]:
    """Hidden channels of h_s at 1/64 and 1/32 of the resolution."""
    return self.hyper_widths or (self.M, self.M * 3 // 2)

  def to_dict(self) -> dict[str, Any]:
    """Return the fields as a dict of JSON values.

    The Gaussian distribution is left out, so that model directories and files are those of programs without other
    distributions, with the same fingerprints."""
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    fields = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)
              if (f.name, getattr(self, f.name)) != ("distribution", "gaussian")}
    return fields | {"options": {name: plain(value) for name, value in dict(self.options).items()}}

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> "CodecConfig":
    """Build a config from the result of `to_dict`. ValueError with the nearest known field for an unknown one.

    The field `scan_unroll` of older files is ignored, because it is not part of the architecture now."""
    known = [f.name for f in dataclasses.fields(cls)]
    fields = {name: value for name, value in fields.items() if name != "scan_unroll"}
    for name in fields:
      if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"the model has no field {name!r}; the nearest is {near!r}")
    return cls(**fields)
