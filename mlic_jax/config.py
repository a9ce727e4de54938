"""CodecConfig: every setting that decides the architecture of a codec, frozen and validated."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class CodecConfig:
  """The architecture of one codec. The defaults are MLIC++ at the size of its paper.

  Attributes:
    N: channels of z, and of the transforms unless `widths` says otherwise.
    M: channels of the latent y.
    num_slices: slices of y, coded one after the other; M / num_slices channels each.
    transforms: g_a and g_s, by file name in mlic_jax/model/transforms/, or by import path.
    widths: channels of the transforms, from fine to coarse, as their file says; () means what it says.
    synthesis_width: channels of the first block of cheng2020's g_s, at 1/16 of the resolution; 0 means M.
    hyper_widths: hidden widths of h_s at 1/64 and at 1/32 of the resolution; () means (M, 3 M / 2).
    contexts: what the prior of a slice may look at, by file name in mlic_jax/model/contexts/, or by import path. "None"
      of a kind is said by leaving it out; () is the hyperprior alone.
    context_ratio: features of an attention context per channel of a slice (the channel context has twice as many).
    channel_widths: hidden widths of the channel context.
    entropy_widths: hidden widths of the networks that turn contexts into mean and scale.
    lrp_widths: hidden widths of the latent residual prediction; () leaves the prediction out.
    window_size: side of the neighborhood, odd: windows of the local attention, kernels of the local convolutions, and
      what softmax intra-slice attention leaves to them.
    distribution: that of y, by file name in mlic_jax/model/distributions/, or by import path.
    num_rates: 0 for one rate per checkpoint; otherwise how many learned gain vectors the checkpoint holds.
    options: settings that single contexts or transforms have of their own, {name: value}; kept as sorted pairs.
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
          raise ValueError(f"{field.name}={value!r}, a name is wanted")
      elif isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field.name}={value!r}, an integer is wanted")
    for name in ("N", "M", "num_slices", "context_ratio"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}, at least 1 is wanted")
    for name in ("num_rates", "synthesis_width"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}, 0 or more is wanted")
    if self.M % self.num_slices:
      raise ValueError(f"M={self.M} does not divide into num_slices={self.num_slices} equal slices")
    if self.slice_channels % 2 and self.contexts:
      raise ValueError(f"M / num_slices = {self.slice_channels} channels a slice; attention wants an even number")
    for name in self.contexts:
      if not isinstance(name, str) or self.contexts.count(name) > 1:
        raise ValueError(f"contexts={self.contexts}, different names are wanted")
    if len(self.hyper_widths) not in (0, 2):
      raise ValueError(f"hyper_widths={self.hyper_widths}, two widths (at 1/64 and 1/32) or () are wanted")
    if self.window_size % 2 == 0 or self.window_size < 3:
      raise ValueError(f"window_size={self.window_size}, an odd number of 3 or more is wanted")

  @property
  def slice_channels(self) -> int:
    """Cs, the channels of one slice."""
    return self.M // self.num_slices

  @property
  def hyper_synthesis_widths(self) -> tuple[int, ...]:
    """Hidden channels of h_s at 1/64 and 1/32 of the resolution."""
    return self.hyper_widths or (self.M, self.M * 3 // 2)

  def to_dict(self) -> dict[str, Any]:
    """A dict that survives JSON. A Gaussian is left out, so that model directories with it, their fingerprints and
    their files are those of programs that know no other distribution."""
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    fields = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)
              if (f.name, getattr(self, f.name)) != ("distribution", "gaussian")}
    return fields | {"options": {name: plain(value) for name, value in dict(self.options).items()}}

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> "CodecConfig":
    """The inverse of `to_dict`; ValueError names an unknown field and the nearest known one.

    `scan_unroll`, which older programs wrote here, is left out: it belongs to the model's compilation (MLIC)."""
    known = [f.name for f in dataclasses.fields(cls)]
    fields = {name: value for name, value in fields.items() if name != "scan_unroll"}
    for name in fields:
      if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"the model has no field {name!r}; the nearest is {near!r}")
    return cls(**fields)
