"""Converts weights of the PyTorch implementations of MLIC to variables of this codec, and back, as NumPy arrays.

    config, variables = from_state_dict(arrays)              the authors' layout or CompressAI's
    arrays = to_state_dict(config, variables, "compressai")  or "authors"

state_dict_files.py reads and writes the files. The authors released MLIC++ in two layouts
(https://github.com/JiangWeibeta/MLIC). CompressAI has MLIC, MLIC+, MLIC++ and its own reading of MLICv2
(https://github.com/InterDigitalInc/CompressAI).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlic_jax.config import CodecConfig
from mlic_jax.interop import layer_map
from mlic_jax.interop.state_dict_names import (
  COMPRESSAI,
  IGNORED,
  WeightsError,
  buffers,
  common_name,
  complaint,
  compressai_name,
  renaming,
  unwrapped,
)
from mlic_jax.interop.variants import infer_config, variant_of
from mlic_jax.model.param_shapes import param_shapes


def canonical_names(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns float32 arrays by common name, without a wrapper, "module." or the containers of CompressAI."""
  state_dict = unwrapped(state_dict)
  found = {}
  for name, value in state_dict.items():
    value = np.asarray(value)
    found[common_name(name)] = value.astype(np.float32, copy=False) if value.dtype.kind == "f" else value
  return found


def from_state_dict(state_dict: Mapping[str, Any], variant: str | None = None) -> tuple[CodecConfig, dict[str, Any]]:
  """Returns the config and the variables of a model, from a state dict of NumPy arrays.

  It accepts both layouts of the authors' releases (April 2024, and September 2023 with its wider residual prediction)
  and CompressAI's, a wrapper such as {"state_dict": ...}, a "module." prefix, and both namings of the entropy
  bottleneck.

  Args:
    state_dict: arrays by their names.
    variant: "mlic", "mlic_plus", "mlic_plus_plus" or "mlic_v2". None selects the model that the keys belong to. MLIC+
      and MLIC++ have the same keys, so MLIC+ has to be named.

  Raises WeightsError in one line that lists unknown and missing keys with the nearest names, or names an array with its
  shape and the expected shape.
  """
  arrays, rename = canonical_names(state_dict), renaming(unwrapped(state_dict))
  try:
    config = infer_config(arrays, variant, rename)
    entries = layer_map.entries(config)
  except WeightsError:
    raise
  except (ValueError, IndexError, TypeError) as error:   # raised for shapes that no model has
    raise WeightsError(f"the shapes are not those of an MLIC model ({' '.join(str(error).split())})") from error
  _check(arrays, entries, rename)
  params = _map(lambda shape: np.zeros(shape.shape, np.float32), param_shapes(config))
  for entry in entries:
    parameter, values = _parameter(params, entry), layer_map.to_parameter(entry, arrays[entry.name])
    parameter[entry.region] = values.reshape(parameter[entry.region].shape)
  return config, {"params": params}


def to_state_dict(config: CodecConfig, variables: Mapping[str, Any], layout: str) -> dict[str, np.ndarray]:
  """Returns the state dict of a model in a layout, "compressai" or "authors". It inverts `from_state_dict`.

  The arrays include buffers. CDF tables are empty, so the PyTorch model has to run update() before it codes. Raises
  WeightsError in one line for a model, or a part of it, that the other implementation does not have.
  """
  variant_of(config, layout)
  entries, params, arrays = layer_map.entries(config), variables["params"], {}
  for entry in entries:
    parameter = _parameter(params, entry)
    if entry.name.startswith("lrp_"):
      _check_unused_outputs(entry, parameter)
    arrays[entry.name] = layer_map.from_parameter(entry, np.asarray(parameter)[entry.region])
  arrays |= buffers(config, layout, entries)
  return {compressai_name(name): array for name, array in arrays.items()} if layout == COMPRESSAI else arrays


def _parameter(params: Any, entry: layer_map.Entry) -> np.ndarray:
  """Returns the parameter of an entry, or the part of its slice."""
  for key in entry.path:
    params = params[key]
  return params if entry.k is None else params[entry.k, ...]  # a view, also for a single number


def _check(arrays: Mapping[str, np.ndarray], entries: list[layer_map.Entry], rename: Callable[[str], str]) -> None:
  """Raises WeightsError unless the state dict has all arrays, in their shapes, and no others."""
  wanted = {entry.name: entry.shape for entry in entries}
  missing = [rename(name) for name in wanted if name not in arrays]
  unknown = [rename(name) for name in arrays if name not in wanted and not IGNORED.match(name)]
  if missing or unknown:
    raise WeightsError(complaint(missing, unknown))
  for name, shape in wanted.items():
    if arrays[name].shape != shape:
      raise WeightsError(f"{rename(name)} has the shape {arrays[name].shape}; wanted {shape}")
    if arrays[name].dtype.kind != "f":
      raise WeightsError(f"{rename(name)} holds {arrays[name].dtype}; wanted floating-point numbers")


def _check_unused_outputs(entry: layer_map.Entry, parameter: np.ndarray) -> None:
  """Raises WeightsError if a residual prediction is wider in a slice than in the release of September 2023."""
  outputs = entry.region[-1]
  if np.any(np.asarray(parameter)[..., outputs.stop:]):
    raise WeightsError(f"{entry.name} has {parameter.shape[-1]} outputs; wanted {outputs.stop}, as in the release of "
                       "September 2023")


def _map(function, tree: Any) -> Any:
  """Returns a tree of dicts with the function applied to each leaf."""
  return {key: _map(function, value) for key, value in tree.items()} if isinstance(tree, Mapping) else function(tree)
