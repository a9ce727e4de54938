"""The names and the buffers of a state dict, in the authors' layout and in CompressAI's.

Every array has a common name, which is its name in the authors' release under CompressAI 1.2.8, such as
`local_context.3.proj.weight`. CompressAI's MLIC models put the names of containers in front of it:
`latent_codec.y.latent_codec.y3.spatial_context_nonanchor.proj.weight`.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mlic_jax.config import CodecConfig
from mlic_jax.interop.layer_map import Entry
from mlic_jax.model.contexts.local_attention import relative_position_index
from mlic_jax.model.likelihoods import LIKELIHOOD_MIN, TAIL_MASS
from mlic_jax.model.scale_table import SCALE_MIN

AUTHORS, COMPRESSAI = "authors", "compressai"
WRAPPERS = ("state_dict", "network", "model_state_dict")  # keys that checkpoints have their state dict under
# Parts of a slice with other names in CompressAI: {common name: CompressAI's name}.
CHANNEL_CONTEXT_NAMES = {"channel_context": "channel_part", "global_inter_context": "global_inter_part"}
LATENT_CODEC_NAMES = {"local_context": "spatial_context_nonanchor",
                      "global_intra_context": "intra_channel_context_nonanchor"}
# Buffers, which `buffers` computes again, and slice_values, which the forward pass of CompressAI's MLICv2 never reads.
IGNORED = re.compile(r"(y\.\d+\.)?gaussian_conditional\.|entropy_bottleneck\.(_|target|likelihood_lower_bound)"
                     r"|.*_reparam\.|.*relative_position_index$|.*attn_mask$|.*\.rope\.frequency$|.*\.slice_values\.")
PEDESTAL = 2.0**-36                            # added to GDN's parameters, which are stored as square roots
GDN_MIN = {"beta": 1e-6, "gamma": 0.0}


class WeightsError(ValueError):
  """A state dict or a model cannot be converted. The message is one line that says why and names keys."""


def unwrapped(content: Any) -> Any:
  """Returns the state dict of a checkpoint, which has it under one of WRAPPERS or is a state dict itself."""
  for wrapper in WRAPPERS:
    if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
      return content[wrapper]
  return content


def common_name(name: str) -> str:
  """Returns the common name of an array of either layout, as any version of CompressAI names it."""
  name = name.removeprefix("module.")
  if found := re.match(r"latent_codec\.y\.channel_context\.y(\d+)\.(channel_part|global_inter_part)\.(.*)", name):
    k, part, rest = found.groups()
    name = f"{_inverse(CHANNEL_CONTEXT_NAMES)[part]}.{k}.{rest}"
  elif found := re.match(r"latent_codec\.y\.latent_codec\.y(\d+)\.(\w+)\.(.*)", name):
    k, part, rest = found.groups()
    name = f"{_inverse(LATENT_CODEC_NAMES).get(part, part)}.{k}.{rest}"
  elif found := re.match(r"latent_codec\.(?:z\.(?=entropy_bottleneck\.)|(?=h_[as]\.))(.*)", name):
    name = found[1]
  if old := re.fullmatch(r"entropy_bottleneck\._(matrix|bias|factor)(\d)", name):
    name = f"entropy_bottleneck.{dict(matrix='matrices', bias='biases', factor='factors')[old[1]]}.{old[2]}"
  return name


def renaming(names: Iterable[str]) -> Callable[[str], str]:
  """Returns a function from common names to the names of the layout that `names` are in. Error messages use it."""
  return compressai_name if any(name.removeprefix("module.").startswith("latent_codec.") for name in names) else str


def compressai_name(name: str) -> str:
  """Returns CompressAI's name of an array, from its common name."""
  if name.startswith(("h_a.", "h_s.")):
    return f"latent_codec.{name}"
  if name.startswith("entropy_bottleneck."):
    return f"latent_codec.z.{name}"
  if name.startswith(("g_a.", "g_s.")):
    return name
  if found := re.match(r"(\w+)\.(\d+)\.(.*)", name):
    part, k, rest = found.groups()
    if part in CHANNEL_CONTEXT_NAMES:
      return f"latent_codec.y.channel_context.y{k}.{CHANNEL_CONTEXT_NAMES[part]}.{rest}"
    return f"latent_codec.y.latent_codec.y{k}.{LATENT_CODEC_NAMES.get(part, part)}.{rest}"
  return name


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
  return {value: key for key, value in names.items()}


def buffers(config: CodecConfig, layout: str, entries: Iterable[Entry]) -> dict[str, np.ndarray]:
  """Returns the buffers of a state dict by common name.

  The CDF tables are empty, as after training; the PyTorch models fill them in update()."""
  found: dict[str, np.ndarray] = {}
  for entry in entries:
    if entry.path[-1] in GDN_MIN:
      found[f"{entry.name}_reparam.pedestal"] = np.array([PEDESTAL], np.float32)
      bound = (GDN_MIN[entry.path[-1]] + PEDESTAL)**0.5
      found[f"{entry.name}_reparam.lower_bound.bound"] = np.array([bound], np.float32)
    elif entry.path[-1] == "relative_position_table":
      name = entry.name.replace("_table", "_index")
      found[name] = relative_position_index(config.window_size).astype(np.int64)
    elif entry.name.endswith(".rope.theta_x"):
      features = config.context_ratio * config.slice_channels
      found[entry.name.replace("theta_x", "frequency")] = np.arange(0, features, 2, dtype=np.float32) / features
    elif entry.name.endswith(".hgcp.proj.weight"):  # CompressAI's model has these parameters and never reads them
      name = entry.name.replace("proj.weight", "slice_values")
      found[f"{name}.weight"] = np.zeros((config.M, config.slice_channels, 1, 1), np.float32)
      found[f"{name}.bias"] = np.zeros(config.M, np.float32)
  found.update(_entropy_model_buffers("entropy_bottleneck"))
  found["entropy_bottleneck.target"] = np.array([-1, 0, 1], np.float32) * np.float32(np.log(2 / TAIL_MASS - 1))
  conditionals = ("gaussian_conditional",) if layout == AUTHORS else (
      f"y.{k}.gaussian_conditional" for k in range(config.num_slices))
  for name in conditionals:
    found.update(_entropy_model_buffers(name))
    found[f"{name}.scale_table"] = np.zeros(0, np.float32)
    found[f"{name}.scale_bound"] = found[f"{name}.lower_bound_scale.bound"] = np.array([SCALE_MIN], np.float32)
  return found


def _entropy_model_buffers(name: str) -> Iterator[tuple[str, np.ndarray]]:
  for table in ("_offset", "_quantized_cdf", "_cdf_length"):
    yield f"{name}.{table}", np.zeros(0, np.int32)
  yield f"{name}.likelihood_lower_bound.bound", np.array([LIKELIHOOD_MIN], np.float32)


class Shapes:
  """Looks up the shapes of a state dict by common name.

  A missing name raises WeightsError with the nearest name; both are shown as `rename` returns them."""

  def __init__(self, weights: Mapping[str, Any], rename: Callable[[str], str]):
    self._weights, self._rename = weights, rename

  def __call__(self, name: str) -> tuple[int, ...]:
    if name not in self._weights:
      near = difflib.get_close_matches(name, self._weights, n=1, cutoff=0.0)
      raise WeightsError(f"not a state dict of the MLIC models: it lacks {self._rename(name)!r}"
                         f"{f'; the nearest is {self._rename(near[0])!r}' if near else ''}")
    return tuple(self._weights[name].shape)

  def numbers(self, pattern: str) -> list[int]:
    """Returns the numbers that the group of a pattern matches in all names, in ascending order."""
    return sorted({int(found[1]) for found in (re.match(pattern, name) for name in self._weights) if found})

  def widths(self, prefix: str, layers: Iterable[int]) -> tuple[int, ...]:
    """Returns the output channels of some layers of a network."""
    return tuple(self(f"{prefix}.{i}.weight")[0] for i in layers)


def complaint(missing: list[str], unknown: list[str], most: int = 8) -> str:
  """Returns one line that lists missing and unknown names, each with the nearest name of the other kind."""
  def listed(names: list[str], others: list[str]) -> str:
    parts = []
    for name in names[:most]:
      near = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
      parts.append(f"{name}" + (f" (nearest: {near[0]})" if near else ""))
    return ", ".join(parts) + (f" and {len(names) - most} more" if len(names) > most else "")
  parts = []
  if missing:
    parts.append(f"missing keys: {listed(missing, unknown)}")
  if unknown:
    parts.append(f"unknown keys: {listed(unknown, missing)}")
  return "; ".join(parts)
