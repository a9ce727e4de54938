"""Weights of the authors' PyTorch release of MLIC++ (https://github.com/JiangWeibeta/MLIC) as variables of this codec.

The release builds every slice for the channels that are decoded when its turn comes; here all slices have the full
width. A kernel is therefore padded with zeros where its inputs are not decoded yet.
"""

import difflib
import functools
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from mlic_jax.config import CodecConfig

# Buffers of the release that are made anew here, or have no counterpart.
IGNORED = re.compile(r"gaussian_conditional\.|entropy_bottleneck\.(_|target|likelihood_lower_bound)"
                     r"|.*_reparam\.|.*relative_position_index$|.*attn_mask$")


class WeightsError(ValueError):
  """The state dict is not one of MLIC++; one line that names keys."""


class _Weights:
  """A state dict that remembers which keys were used."""

  def __init__(self, state_dict: dict[str, np.ndarray]):
    self._arrays = state_dict
    self._used: set[str] = set()
    self.missing: list[str] = []

  def __getitem__(self, name: str) -> np.ndarray:
    self._used.add(name)
    if name not in self._arrays:
      self.missing.append(name)
      return np.zeros((0,) * 4, np.float32)
    return self._arrays[name]

  def unused(self) -> list[str]:
    return [name for name in self._arrays if name not in self._used and not IGNORED.match(name)]


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The state dict in a file of torch.save, as NumPy arrays. Needs PyTorch, and runs no code from the file.

  OSError when there is no such file; WeightsError in one line when PyTorch is not installed or finds no state dict.
  """
  with open(path, "rb"):  # PyTorch's own error has no file name in it
    pass
  try:
    import torch
  except ImportError as error:
    raise WeightsError(f"{path}: reading it takes PyTorch, which is not installed here; pip install torch") from error
  try:
    content = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # PyTorch raises whatever the damage leads it to
    reason = " ".join(str(error).split())[:200]
    raise WeightsError(f"{path}: PyTorch cannot read it ({type(error).__name__}: {reason})") from error
  if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
    content = content["state_dict"]
  if not isinstance(content, dict) or not all(hasattr(value, "numpy") for value in content.values()):
    raise WeightsError(f"{path}: holds no state dict, a dictionary of tensors")
  if bad := next((name for name in content if not isinstance(name, str)), None):
    raise WeightsError(f"{path}: holds no state dict: {bad!r} is no name of a tensor")
  return {name: _array(value) for name, value in content.items()}


def _array(tensor) -> np.ndarray:
  """A tensor of PyTorch as NumPy, which has no bfloat16 and no gradients; a copy of what NumPy can have as it is."""
  tensor = tensor.detach() if hasattr(tensor, "detach") else tensor
  if hasattr(tensor, "is_floating_point") and tensor.is_floating_point():
    tensor = tensor.float()
  return tensor.numpy()


def canonical_names(state_dict: dict[str, Any]) -> dict[str, np.ndarray]:
  """float32 arrays under the names of CompressAI 1.2.8: unwrapped, without "module.", entropy bottleneck renamed."""
  if "state_dict" in state_dict and not hasattr(state_dict["state_dict"], "shape"):
    state_dict = state_dict["state_dict"]
  plural = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
  renamed = {}
  for name, value in state_dict.items():
    name = name.removeprefix("module.")
    if old := re.fullmatch(r"entropy_bottleneck\._(matrix|bias|factor)(\d)", name):
      name = f"entropy_bottleneck.{plural[old[1]]}.{old[2]}"
    value = np.asarray(value)
    renamed[name] = value.astype(np.float32) if value.dtype.kind == "f" else value
  return renamed


def infer_config(weights: dict[str, np.ndarray]) -> CodecConfig:
  """The config of a state dict in canonical names; WeightsError when it has no such shapes."""
  def shape(name: str) -> tuple[int, ...]:
    if name not in weights:
      near = difflib.get_close_matches(name, weights, n=1, cutoff=0.0)
      raise WeightsError(f"not a state dict of MLIC++: it lacks {name!r}{f'; nearest: {near[0]!r}' if near else ''}")
    return weights[name].shape

  num_slices = 1 + max((int(m[1]) for m in (re.match(r"lrp_anchor\.(\d+)\.", n) for n in weights) if m), default=0)
  M, N = shape("g_a.analysis_transform.6.weight")[:2]
  window = (round(shape("local_context.0.relative_position_table")[0]**0.5) + 1) // 2
  last = num_slices - 1
  widths = lambda prefix, layers: tuple(shape(f"{prefix}.{i}.weight")[0] for i in layers)
  lrp_layers = sorted(int(m[1]) for m in (re.fullmatch(rf"lrp_anchor\.{last}\.lrp_transform\.(\d+)\.weight", n)
                                          for n in weights) if m)
  return CodecConfig(
      N=N, M=M, num_slices=num_slices, window_size=window,
      synthesis_width=first if (first := shape("g_s.synthesis_transform.0.conv1.weight")[0]) != M else 0,
      channel_widths=widths(f"channel_context.{last}.fushion", (0, 2)) if last else (192, 128),
      entropy_widths=widths(f"entropy_parameters_anchor.{last}.fusion", (0, 2, 4)),
      lrp_widths=widths(f"lrp_anchor.{last}.lrp_transform", lrp_layers[:-1]))


def from_state_dict(state_dict: dict[str, np.ndarray]) -> tuple[CodecConfig, dict[str, Any]]:
  """The config and the variables of a release, from a state dict of NumPy arrays.

  Accepts a {"state_dict": ...} wrapper, a "module." prefix, both namings of the entropy bottleneck, and both published
  layouts (April 2024, and September 2023 with its wider residual prediction). Raises WeightsError in one line that
  lists unknown and missing keys with the nearest names, or says what has not the shape that it has to have.
  """
  arrays = canonical_names(state_dict)
  try:
    return _converted(arrays)
  except WeightsError:
    raise
  except (ValueError, IndexError, TypeError) as error:   # of arrays that are taken apart as no array of theirs can be
    raise WeightsError(f"the shapes are not those of MLIC++ ({' '.join(str(error).split())})") from error


def _converted(arrays: dict[str, np.ndarray]) -> tuple[CodecConfig, dict[str, Any]]:
  config = infer_config(arrays)
  weights = _Weights(arrays)
  steps = [_slice_step(weights, config, k) for k in range(config.num_slices)]
  params = {"g_a": _analysis(weights), "g_s": _synthesis(weights), "h_a": _hyper_analysis(weights),
            "h_s": _hyper_synthesis(weights), "z_prior": _z_prior(weights)}
  unused = weights.unused()
  if weights.missing or unused:
    raise WeightsError(_complaint(weights.missing, unused))
  shapes = _target_shapes(config)
  _check_shapes(params, {name: shapes[name] for name in params})
  return config, {"params": {**params, "slices": {"steps": _stack(steps, shapes["slices"]["steps"])}}}


def _check_shapes(arrays: Any, shapes: Any, name: str = "") -> None:
  """WeightsError unless both trees are the same and their arrays have these shapes."""
  if hasattr(shapes, "shape"):
    if arrays.shape != shapes.shape:
      raise WeightsError(f"{name} has the shape {arrays.shape}; {shapes.shape} is wanted")
    return
  for key in shapes:
    _check_shapes(arrays[key], shapes[key], f"{name}/{key}" if name else key)


def _complaint(missing: list[str], unknown: list[str], most: int = 8) -> str:
  def listed(names: Iterable[str], others: list[str]) -> str:
    names = list(names)
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


def _conv(w: _Weights, name: str) -> dict[str, np.ndarray]:
  """(out, in, kh, kw) -> (kh, kw, in, out). The depthwise (C, 1, kh, kw) becomes (kh, kw, 1, C)."""
  return {"kernel": w[f"{name}.weight"].transpose(2, 3, 1, 0), "bias": w[f"{name}.bias"]}


def _dense(w: _Weights, name: str) -> dict[str, np.ndarray]:
  return {"kernel": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}


def _norm(w: _Weights, name: str) -> dict[str, np.ndarray]:
  return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def _gdn(w: _Weights, name: str) -> dict[str, np.ndarray]:
  return {"beta": w[f"{name}.beta"], "gamma": w[f"{name}.gamma"]}


def _block(w: _Weights, name: str) -> dict[str, Any]:
  convs = ["conv1", "conv2"] + (["skip"] if f"{name}.skip.weight" in w._arrays else [])
  return {conv: _conv(w, f"{name}.{conv}") for conv in convs}


def _analysis(w: _Weights) -> dict[str, Any]:
  layers: dict[str, Any] = {"out": _conv(w, "g_a.analysis_transform.6")}
  for i in range(3):
    down = f"g_a.analysis_transform.{2 * i}"
    layers[f"down{i}"] = {**_block(w, down), "gdn": _gdn(w, f"{down}.gdn")}
    layers[f"block{i}"] = _block(w, f"g_a.analysis_transform.{2 * i + 1}")
  return layers


def _synthesis(w: _Weights) -> dict[str, Any]:
  layers: dict[str, Any] = {"out": {"conv": _conv(w, "g_s.synthesis_transform.7.0")}}
  for i in range(4):
    layers[f"block{i}"] = _block(w, f"g_s.synthesis_transform.{2 * i}")
  for i in range(3):
    up = f"g_s.synthesis_transform.{2 * i + 1}"
    layers[f"up{i}"] = {"subpel_conv": {"conv": _conv(w, f"{up}.subpel_conv.0")}, "conv": _conv(w, f"{up}.conv"),
                        "igdn": _gdn(w, f"{up}.igdn"), "upsample": {"conv": _conv(w, f"{up}.upsample.0")}}
  return layers


def _hyper_analysis(w: _Weights) -> dict[str, Any]:
  return {f"conv{i}": _conv(w, f"h_a.reduction.{2 * i}") for i in range(5)}


def _hyper_synthesis(w: _Weights) -> dict[str, Any]:
  return {"conv0": _conv(w, "h_s.increase.0"), "up0": {"conv": _conv(w, "h_s.increase.2.0")},
          "conv1": _conv(w, "h_s.increase.4"), "up1": {"conv": _conv(w, "h_s.increase.6.0")},
          "conv2": _conv(w, "h_s.increase.8")}


def _z_prior(w: _Weights) -> dict[str, np.ndarray]:
  prior = {"quantiles": w["entropy_bottleneck.quantiles"].reshape(-1, 3)}
  for i in range(5):
    prior[f"matrix{i}"] = w[f"entropy_bottleneck.matrices.{i}"]
    prior[f"bias{i}"] = w[f"entropy_bottleneck.biases.{i}"][..., 0]
  for i in range(4):
    prior[f"factor{i}"] = w[f"entropy_bottleneck.factors.{i}"][..., 0]
  return prior


def _convs(w: _Weights, name: str, count: int) -> dict[str, Any]:
  return {f"conv{i}": _conv(w, f"{name}.{2 * i}") for i in range(count)}


def _slice_step(w: _Weights, config: CodecConfig, k: int) -> dict[str, Any]:
  """The parameters of step k, at the widths of the release."""
  step: dict[str, Any] = {"contexts_local_attention": _local_attention(w, f"local_context.{k}")}
  if k:
    intra, inter = _attention(w, f"global_intra_context.{k}"), _attention(w, f"global_inter_context.{k}")
    inter["skip"] = _conv(w, f"global_inter_context.{k}.skip")
    step["contexts_global_intra_linear"], step["contexts_global_inter_linear"] = intra, inter
    step["contexts_channel"] = {"convs": _convs(w, f"channel_context.{k}.fushion", 3)}
  for parity in ("anchor", "nonanchor"):
    step[f"entropy_{parity}"] = _convs(w, f"entropy_parameters_{parity}.{k}.fusion", 4)
    step[f"lrp_{parity}"] = _convs(w, f"lrp_{parity}.{k}.lrp_transform", len(config.lrp_widths) + 1)
  if not k:
    # Slice 0 has no features of earlier slices: those inputs are zero here, and lie before the hyper features.
    silent = 3 * config.context_ratio * config.slice_channels
    local = config.context_ratio * config.slice_channels
    _insert_zeros(step["entropy_anchor"]["conv0"], 0, silent)
    _insert_zeros(step["entropy_nonanchor"]["conv0"], local, silent + local)
  return step


def _insert_zeros(conv: dict[str, np.ndarray], at: int, count: int) -> None:
  conv["kernel"] = np.insert(conv["kernel"], [at] * count, 0, axis=2)


def _local_attention(w: _Weights, name: str) -> dict[str, Any]:
  fusion = w[f"{name}.fusion.weight"].transpose(2, 3, 1, 0)  # (size, size, C, features)
  return {"relative_position_table": w[f"{name}.relative_position_table"],
          "qkv": _dense(w, f"{name}.qkv_proj"), "proj": _dense(w, f"{name}.proj"),
          "norm1": _norm(w, f"{name}.norm1"), "norm2": _norm(w, f"{name}.norm2"),
          "fc1": _dense(w, f"{name}.mlp.fc1"), "fc2": _dense(w, f"{name}.mlp.fc2"),
          "fusion": {"kernel": fusion.reshape(-1, fusion.shape[-1]), "bias": w[f"{name}.fusion.bias"]}}


def _attention(w: _Weights, name: str) -> dict[str, Any]:
  parts: dict[str, Any] = {"reprojection": _conv(w, f"{name}.reprojection")}
  for part in ("queries", "keys", "values"):
    parts[part] = {"pointwise": _conv(w, f"{name}.{part}.0"), "depthwise": _conv(w, f"{name}.{part}.1")}
  parts["mlp"] = {"expand": _conv(w, f"{name}.mlp.0"), "depthwise": _conv(w, f"{name}.mlp.2"),
                  "reduce": _conv(w, f"{name}.mlp.4")}
  return parts


@functools.cache  # tracing takes seconds
def _target_shapes(config: CodecConfig) -> dict[str, Any]:
  """The shapes of all parameters, those of the steps stacked: a tree of jax.ShapeDtypeStruct."""
  import jax

  from mlic_jax.model.mlic import build
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  return jax.eval_shape(build(config).init, jax.random.key(0), x)["params"]


def _stack(steps: list[Any], shapes: Any) -> Any:
  """Stacks the trees of all steps, each array padded with zeros at the end of its axes; absent parts are zeros."""
  if hasattr(shapes, "shape"):
    stacked = np.zeros(shapes.shape, np.float32)
    for k, (row, array) in enumerate(zip(stacked, steps)):
      if array is None:
        continue
      # Channels may be fewer, where slices are not decoded yet; the sides of a kernel, and a bias, may not.
      same = array.ndim == row.ndim and array.shape[:-2] == row.shape[:-2]
      if not same or any(n > most or not n for n, most in zip(array.shape, row.shape)):
        raise WeightsError(f"an array of slice {k} has the shape {array.shape}; at most {row.shape} is wanted")
      row[tuple(slice(n) for n in array.shape)] = array
    return stacked
  return {name: _stack([None if step is None else step[name] for step in
                        (s if s is None or name in s else None for s in steps)], inner)
          for name, inner in shapes.items()}
