"""Maps every array of a PyTorch state dict of the MLIC models to its index in the parameters of this codec.

Arrays have their common names (state_dict_names.py). Reading and writing use the same table of entries.

The PyTorch models build each slice for the channels that are decoded before it. Here all slices have the full width and
are stacked, so an array fills a part of its parameter. The rest is zero: it belongs to inputs that are not decoded yet,
or to outputs that are not used.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlic_jax.config import CodecConfig
from mlic_jax.model import selection_map
from mlic_jax.model.transforms import token_mixing

CONV, DENSE, FUSION, SAME = "conv", "dense", "fusion", "same"
STEPS = ("slices", "steps")
LOCAL_ATTENTION, LOCAL_STACKED, FIRST = "local_attention", "local_stacked", "global_hyper_anchors"


class Entry(NamedTuple):
  """One array of the state dict."""
  name: str
  shape: tuple[int, ...]        # in PyTorch: (out, in, height, width) of convolutions, (out, in) of linear layers
  path: tuple[str, ...]         # keys of the parameter, below "params"
  kind: str                     # how the axes of the array correspond to those of the parameter
  region: tuple[Any, ...] = ()  # index of the values in the parameter, or in the part of slice k
  k: int | None = None


def to_parameter(entry: Entry, array: np.ndarray) -> np.ndarray:
  """Returns an array with its axes in the order of the parameter."""
  if entry.kind == CONV:
    return array.transpose(2, 3, 1, 0)
  if entry.kind == DENSE:
    return array.T
  if entry.kind == FUSION:
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
  return array


def from_parameter(entry: Entry, values: np.ndarray) -> np.ndarray:
  """Inverts `to_parameter` and returns an array in the shape of the entry."""
  if entry.kind == CONV:
    values = values.transpose(3, 2, 0, 1)
  elif entry.kind == DENSE:
    values = values.T
  elif entry.kind == FUSION:
    features, channels, *size = entry.shape
    values = values.reshape(*size, channels, features).transpose(3, 2, 0, 1)
  return np.array(values.reshape(entry.shape), np.float32, order="C")


def entries(config: CodecConfig) -> list[Entry]:
  """Returns all arrays of the state dict of a config, which variants.variant_of has accepted or infer_config made."""
  transforms = _token_mixing if config.transforms == "token_mixing" else _residual
  found = [*transforms(config), *_hyper(config), *_factorized(config.N)]
  for k in range(config.num_slices):
    found += [entry._replace(path=(*STEPS, *entry.path), k=k) for entry in _step(config, k)]
  return found


def lrp_widths(config: CodecConfig, k: int) -> tuple[int, ...]:
  """Returns the hidden widths of the residual prediction of slice k.

  In the release of September 2023 they depend on the number of inputs, which grows from slice to slice. Then
  config.lrp_widths holds the widths of the last slice."""
  if config.lrp_widths != shrinking_widths(config, config.num_slices - 1):
    return config.lrp_widths
  return shrinking_widths(config, k)


def shrinking_widths(config: CodecConfig, k: int) -> tuple[int, ...]:
  """Returns the hidden widths of the residual prediction of slice k in the release of September 2023."""
  inputs = config.M + (k + 1) * config.slice_channels
  surplus = inputs - config.slice_channels
  return inputs - surplus // 4, inputs - surplus // 2, inputs - surplus * 3 // 4


def _conv(path: Sequence[str], name: str, inputs: int, outputs: int, size: int, depthwise: bool = False,
          channels: Any = None) -> Iterator[Entry]:
  """Yields a convolution. `channels` has the input channels of this codec's kernel, if they are not the first ones."""
  inputs = 1 if depthwise else inputs
  index = (slice(None), slice(None), slice(inputs) if channels is None else channels, slice(outputs))
  yield Entry(f"{name}.weight", (outputs, inputs, size, size), (*path, "kernel"), CONV, index)
  yield Entry(f"{name}.bias", (outputs,), (*path, "bias"), SAME, (slice(outputs),))


def _convs(path: Sequence[str], name: str, widths: Sequence[int], size: int, channels: Any = None) -> Iterator[Entry]:
  """Yields a ConvStack with these widths of input and layers. In PyTorch activations count as layers."""
  for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
    yield from _conv((*path, f"conv{i}"), f"{name}.{2 * i}", inputs, outputs, size, channels=None if i else channels)


def _dense(path: Sequence[str], name: str, inputs: int, outputs: int) -> Iterator[Entry]:
  yield Entry(f"{name}.weight", (outputs, inputs), (*path, "kernel"), DENSE)
  yield Entry(f"{name}.bias", (outputs,), (*path, "bias"), SAME)


def _norm(path: Sequence[str], name: str, channels: int) -> Iterator[Entry]:
  yield Entry(f"{name}.weight", (channels,), (*path, "scale"), SAME)
  yield Entry(f"{name}.bias", (channels,), (*path, "bias"), SAME)


def _gate(path: Sequence[str], name: str, channels: int) -> Iterator[Entry]:
  """Yields a gate with a norm of its own."""
  yield from _norm((*path, "norm"), f"{name}.0", channels)
  yield from _conv((*path, "expand"), f"{name}.1", channels, channels, 1)
  yield from _conv((*path, "depthwise"), f"{name}.3", channels, channels, 3, depthwise=True)
  yield from _conv((*path, "reduce"), f"{name}.5", channels, channels, 1)


def _resampling(config: CodecConfig) -> Iterator[Entry]:
  """Yields the layers between the blocks, which both kinds of transforms share."""
  N, M, g_a, g_s = config.N, config.M, "g_a.analysis_transform", "g_s.synthesis_transform"
  first = config.synthesis_width or M
  for i in range(3):
    inputs, name, path = N if i else 3, f"{g_a}.{2 * i}", ("g_a", f"down{i}")
    yield from _conv((*path, "conv1"), f"{name}.conv1", inputs, N, 3)
    yield from _conv((*path, "conv2"), f"{name}.conv2", N, N, 3)
    yield from _conv((*path, "skip"), f"{name}.skip", inputs, N, 1)
    yield from _gdn((*path, "gdn"), f"{name}.gdn", N)
  yield from _conv(("g_a", "out"), f"{g_a}.6", N, M, 3)
  for i in range(3):
    inputs, name, path = N if i else first, f"{g_s}.{2 * i + 1}", ("g_s", f"up{i}")
    yield from _conv((*path, "subpel_conv", "conv"), f"{name}.subpel_conv.0", inputs, 4 * N, 3)
    yield from _conv((*path, "conv"), f"{name}.conv", N, N, 3)
    yield from _gdn((*path, "igdn"), f"{name}.igdn", N)
    yield from _conv((*path, "upsample", "conv"), f"{name}.upsample.0", inputs, 4 * N, 3)
  yield from _conv(("g_s", "out", "conv"), f"{g_s}.7.0", N, 4 * 3, 3)


def _gdn(path: Sequence[str], name: str, channels: int) -> Iterator[Entry]:
  yield Entry(f"{name}.beta", (channels,), (*path, "beta"), SAME)
  yield Entry(f"{name}.gamma", (channels, channels), (*path, "gamma"), SAME)


def _blocks(config: CodecConfig) -> Iterator[tuple[tuple[str, str], str, int, int]]:
  """Yields (path, name, channels before, channels after) of the blocks between the resampling layers."""
  N, M = config.N, config.M
  for i in range(3):
    yield ("g_a", f"block{i}"), f"g_a.analysis_transform.{2 * i + 1}", N, N
  for i in range(4):
    before, after = (N, N) if i else (M, config.synthesis_width or M)
    yield ("g_s", f"block{i}"), f"g_s.synthesis_transform.{2 * i}", before, after


def _residual(config: CodecConfig) -> Iterator[Entry]:
  yield from _resampling(config)
  for path, name, before, after in _blocks(config):
    yield from _conv((*path, "conv1"), f"{name}.conv1", before, after, 3)
    yield from _conv((*path, "conv2"), f"{name}.conv2", after, after, 3)
    if before != after:
      yield from _conv((*path, "skip"), f"{name}.skip", before, after, 1)


def _token_mixing(config: CodecConfig) -> Iterator[Entry]:
  """Yields transforms with the options token_depthwise_first and gate_norm."""
  yield from _resampling(config)
  for (part, block), prefix, c, _ in _blocks(config):
    for j in range(token_mixing.settings(config)["token_blocks"]):
      path, name = (part, f"{block}_{j}"), f"{prefix}.{j}"
      yield from _norm((*path, "norm1"), f"{name}.norm1", c)
      yield from _conv((*path, "depthwise"), f"{name}.token_mixer.0.block.0", c, c, 3, depthwise=True)
      yield from _conv((*path, "reduce"), f"{name}.token_mixer.0.block.2", c, c, 1)
      yield from _conv((*path, "mix"), f"{name}.token_mixer.1", c, c, 5, depthwise=True)
      yield from _conv((*path, "out"), f"{name}.token_mixer.2", c, c, 1)
      yield from _norm((*path, "norm2"), f"{name}.norm2", c)
      yield from _gate((*path, "gate"), f"{name}.gate.gate", c)


def _hyper(config: CodecConfig) -> Iterator[Entry]:
  N, M, (low, high) = config.N, config.M, config.hyper_synthesis_widths
  yield from _convs(("h_a",), "h_a.reduction", (M, *5 * (N,)), 3)
  yield from _conv(("h_s", "conv0"), "h_s.increase.0", N, low, 3)
  yield from _conv(("h_s", "up0", "conv"), "h_s.increase.2.0", low, 4 * low, 3)
  yield from _conv(("h_s", "conv1"), "h_s.increase.4", low, high, 3)
  yield from _conv(("h_s", "up1", "conv"), "h_s.increase.6.0", high, 4 * high, 3)
  yield from _conv(("h_s", "conv2"), "h_s.increase.8", high, 2 * M, 3)


def _factorized(N: int) -> Iterator[Entry]:
  sizes, name = (1, 3, 3, 3, 3, 1), "entropy_bottleneck"
  yield Entry(f"{name}.quantiles", (N, 1, 3), ("z_prior", "quantiles"), SAME)
  for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
    yield Entry(f"{name}.matrices.{i}", (N, outputs, inputs), ("z_prior", f"matrix{i}"), SAME)
    yield Entry(f"{name}.biases.{i}", (N, outputs, 1), ("z_prior", f"bias{i}"), SAME)
    if i < 4:
      yield Entry(f"{name}.factors.{i}", (N, outputs, 1), ("z_prior", f"factor{i}"), SAME)


def _step(config: CodecConfig, k: int) -> Iterator[Entry]:
  """Yields the arrays of slice k, with paths below those of a step."""
  M, cs = config.M, config.slice_channels
  f, decoded = config.context_ratio * cs, k * cs
  names = _Names(config)
  if names.local == LOCAL_ATTENTION:
    yield from _local_attention(config, f"local_context.{k}")
  else:
    yield from _convs(("contexts_local_stacked", "convs"), f"local_context.{k}.context", (cs, cs, cs, f),
                      config.window_size)
  if names.first and not k:
    yield from _first_slice(config)
  if k:
    yield from _attention(config, f"contexts_{names.intra}", f"global_intra_context.{k}", cs, f)
    if names.inter:
      yield from _attention(config, f"contexts_{names.inter}", f"global_inter_context.{k}", decoded, f * 3 // 2)
    yield from _convs(("contexts_channel", "convs"), f"channel_context.{k}.fushion",
                      (decoded, *config.channel_widths, 2 * f), 3)
  for parity in ("anchor", "nonanchor"):
    channels = names.entropy_inputs(parity, k)
    yield from _convs((f"entropy_{parity}",), f"entropy_parameters_{parity}.{k}.fusion",
                      (len(channels), *config.entropy_widths, 2 * cs), 1, channels)
    yield from _convs((f"lrp_{parity}",), f"lrp_{parity}.{k}.lrp_transform",
                      (M + decoded + cs, *lrp_widths(config, k), cs), 3)
  if selection_map.has_map(config):
    yield from _selection_map(config, f"selective_predictor.{k}", names.map_inputs(k))


class _Names:
  """The contexts of a config, and the channels of their features in the inputs of networks."""

  def __init__(self, config: CodecConfig):
    self.config = config
    find = lambda prefix: next((name for name in config.contexts if name.startswith(prefix)), None)
    self.local, self.intra, self.inter = find("local_"), find("global_intra_"), find("global_inter_")
    self.first = FIRST if FIRST in config.contexts else None

  def entropy_inputs(self, parity: str, k: int) -> np.ndarray:
    """Returns the input channels of this codec's network that the PyTorch network of slice k has."""
    from_anchors = [name for name in self.config.contexts if name in (self.local, self.intra)]
    if parity == "anchor":
      ours = [name for name in self.config.contexts if name not in from_anchors]
      theirs = [self.inter, "channel"] if k else [self.first]
    else:
      ours = [*from_anchors, *self._in_both_passes()]
      theirs = [self.local, *([self.intra, self.inter, "channel"] if k else [])]
    return self._channels(ours, theirs, before=0, hyper_after=True)

  def map_inputs(self, k: int) -> np.ndarray:
    """Returns the same for the side information of the selection map: hyper, decoded slices, features."""
    M, decoded = self.config.M, k * self.config.slice_channels
    theirs = [self.inter, "channel"] if k else []
    features = self._channels(self._in_both_passes(), theirs, before=3 * M, hyper_after=False)
    return np.concatenate([np.arange(2 * M + decoded), features])

  def _in_both_passes(self) -> list[str]:
    return [name for name in self.config.contexts if name in (self.inter, "channel")]

  def _channels(self, ours: list[str], theirs: list[str | None], before: int, hyper_after: bool) -> np.ndarray:
    width = lambda name: (2 if name == "channel" else 1) * self.config.context_ratio * self.config.slice_channels
    starts, end = {}, before
    for name in ours:
      starts[name], end = end, end + width(name)
    found = [np.arange(starts[name], starts[name] + width(name)) for name in theirs if name]
    return np.concatenate([*found, np.arange(end, end + 2 * self.config.M if hyper_after else end)]).astype(int)


def _local_attention(config: CodecConfig, name: str) -> Iterator[Entry]:
  cs, f, size = config.slice_channels, config.context_ratio * config.slice_channels, config.window_size
  path = (f"contexts_{LOCAL_ATTENTION}",)
  yield Entry(f"{name}.relative_position_table", ((2 * size - 1)**2, 2), (*path, "relative_position_table"), SAME)
  yield from _dense((*path, "qkv"), f"{name}.qkv_proj", cs, 3 * cs)
  yield from _dense((*path, "proj"), f"{name}.proj", f, f)
  yield from _dense((*path, "fc1"), f"{name}.mlp.fc1", f, 2 * f)
  yield from _dense((*path, "fc2"), f"{name}.mlp.fc2", 2 * f, f)
  yield from _norm((*path, "norm1"), f"{name}.norm1", cs)
  yield from _norm((*path, "norm2"), f"{name}.norm2", f)
  yield Entry(f"{name}.fusion.weight", (f, cs, size, size), (*path, "fusion", "kernel"), FUSION)
  yield Entry(f"{name}.fusion.bias", (f,), (*path, "fusion", "bias"), SAME)


def _projections(path: Sequence[str], names: dict[str, str], channels: int) -> Iterator[Entry]:
  for part, name in names.items():
    yield from _conv((*path, part, "pointwise"), f"{name}.0", channels, channels, 1)
    yield from _conv((*path, part, "depthwise"), f"{name}.1", channels, channels, 3, depthwise=True)


def _attention(config: CodecConfig, context: str, name: str, channels: int, wide: int) -> Iterator[Entry]:
  """Yields a global context with `channels` inputs that is `wide` after its reprojection.

  If that is wider than its features, it has a skip connection."""
  f = config.context_ratio * config.slice_channels
  path: tuple[str, ...] = (context,)
  refined = dict(config.options).get("reweighting", False)
  inner = f"{name}.context" if refined else name
  yield from _projections(path, {part: f"{inner}.{part}" for part in ("queries", "keys", "values")}, channels)
  yield from _conv((*path, "reprojection"), f"{inner}.reprojection", channels, wide, 5)
  yield from _conv((*path, "mlp", "expand"), f"{inner}.mlp.0", wide, 2 * f, 1)
  yield from _conv((*path, "mlp", "depthwise"), f"{inner}.mlp.2", 2 * f, 2 * f, 3, depthwise=True)
  yield from _conv((*path, "mlp", "reduce"), f"{inner}.mlp.4", 2 * f, f, 1)
  if wide != f:
    yield from _conv((*path, "skip"), f"{inner}.skip", wide, f, 1)
  if refined:
    yield Entry(f"{name}.rope.theta_x", (), (*path, "rotary_output", "theta"), SAME, (slice(0, 1),))
    yield Entry(f"{name}.rope.theta_y", (), (*path, "rotary_output", "theta"), SAME, (slice(1, 2),))
    path, name = (*path, "reweighting"), f"{name}.reweighting"
    yield from _norm((*path, "norm"), f"{name}.norm", f)
    for part, their_part in (("queries", "queries"), ("keys", "keys"), ("values", "values"), ("out", "proj")):
      yield from _conv((*path, part), f"{name}.{their_part}", f, f, 1)
    yield from _norm((*path, "norm_out"), f"{name}.out_norm", f)
    yield from _gate((*path, "gate"), f"{name}.gate.net", f)


def _first_slice(config: CodecConfig) -> Iterator[Entry]:
  M, f, path = config.M, config.context_ratio * config.slice_channels, (f"contexts_{FIRST}",)
  name = "spatial_context_anchor.0.hgcp"
  yield from _projections(path, dict(queries=f"{name}.queries", keys=f"{name}.keys", values=f"{name}.hyper_values"), M)
  yield from _conv((*path, "reprojection"), f"{name}.proj", M, f, 3)
  yield from _gate((*path, "gate"), f"{name}.gate.net", f)


def _selection_map(config: CodecConfig, name: str, channels: np.ndarray) -> Iterator[Entry]:
  path, cs, (hidden,) = ("map_both",), config.slice_channels, selection_map.options(config)["selection_widths"]
  yield Entry(f"{name}.step_bias", (2, cs, 1, 1), (*path, "pass_bias"), SAME)
  yield Entry(f"{name}.scale_slope", (), (*path, "slope"), SAME)
  yield from _conv((*path, "side"), f"{name}.side_proj", len(channels), hidden, 1, channels=channels)
  yield from _conv((*path, "conv0"), f"{name}.predictor.0", hidden + 3 * cs, hidden, 3)
  yield from _conv((*path, "conv1"), f"{name}.predictor.2", hidden, hidden, 3)
  yield from _conv((*path, "conv2"), f"{name}.predictor.4", hidden, cs, 1)
