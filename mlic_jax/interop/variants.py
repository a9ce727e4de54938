"""Infers the config of a state dict, and checks which models the other implementations have.

CompressAI and this package interpret the papers differently in some details. The options of a config have both
interpretations (docs/models.md lists them).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from mlic_jax.config import CodecConfig
from mlic_jax.interop.layer_map import FIRST, shrinking_widths
from mlic_jax.interop.state_dict_names import AUTHORS, COMPRESSAI, Shapes, WeightsError
from mlic_jax.model import selection_map
from mlic_jax.model.contexts.global_inter_linear import num_heads

MLIC, MLIC_PLUS, MLIC_PLUS_PLUS, MLIC_V2 = "mlic", "mlic_plus", "mlic_plus_plus", "mlic_v2"
CONTEXTS = {
    MLIC: ("local_stacked", "global_intra_softmax", "channel"),
    MLIC_PLUS: ("local_attention", "global_intra_softmax", "global_inter_softmax", "channel"),
    MLIC_PLUS_PLUS: ("local_attention", "global_intra_linear", "global_inter_linear", "channel"),
    MLIC_V2: ("local_attention", FIRST, "global_intra_linear", "global_inter_linear", "channel")}
HEAD_CHANNELS = 32       # channels of each head of inter-slice contexts in the authors' code and in CompressAI
HIDDEN_WINDOW = 5        # side of the window that softmax attention within a slice masks in CompressAI
# Fields of a config with a fixed value in both implementations.
FIXED: dict[str, Any] = dict(
    distribution="gaussian",
    widths=(), hyper_widths=(), context_ratio=2, channel_widths=(192, 128), entropy_widths=(320, 256, 128))
LRP_WIDTHS = (224, 128)
# CompressAI's interpretation of MLICv2, in which token_expansion is the width of the gate.
V2_OPTIONS = dict(token_blocks=2, token_expansion=1, token_depthwise_first=True, gate_norm=True, guide_scales=True,
                  rotary_output=True, reweighting=True, reweighting_cosines=False, selection_spatial=True,
                  selection_distance=0.3, selection_chance=0.5, selection_lrp=False)


def infer_config(weights: Mapping[str, Any], variant: str | None = None,
                 rename: Callable[[str], str] = str) -> CodecConfig:
  """Returns the config of a state dict, from the shapes of its arrays by common name.

  MLIC+ and MLIC++ have the same keys, which mean MLIC++ unless `variant` is "mlic_plus". Raises WeightsError if the
  keys are those of another model than `variant`, or of no MLIC model.

  Args:
    weights: arrays by common name.
    variant: one of CONTEXTS, or None for any.
    rename: converts a common name to the name that errors show.
  """
  shape = Shapes(weights, rename)
  M, N = shape("g_a.analysis_transform.6.weight")[:2]
  found = MLIC_V2 if "g_a.analysis_transform.1.0.norm1.weight" in weights else (
      MLIC if "local_context.0.context.0.weight" in weights else MLIC_PLUS_PLUS)
  if variant not in (None, found) and {variant, found} != {MLIC_PLUS, MLIC_PLUS_PLUS}:
    raise WeightsError(f"the keys are those of {found}; wanted {variant}")
  num_slices = 1 + max(shape.numbers(r"lrp_anchor\.(\d+)\."), default=0)
  last, options = num_slices - 1, {}
  if found == MLIC_V2:
    options = V2_OPTIONS | dict(
        token_blocks=1 + max(shape.numbers(r"g_a\.analysis_transform\.1\.(\d+)\.norm1\."), default=0),
        selection_widths=(shape("selective_predictor.0.side_proj.weight")[0],))
    first_width, window = 0, _window(shape)
  else:
    first_width = width if (width := shape("g_s.synthesis_transform.0.conv1.weight")[0]) != M else 0
    window = shape("local_context.0.context.0.weight")[-1] if found == MLIC else _window(shape)
  chosen = variant or found
  if chosen in (MLIC, MLIC_PLUS):
    options |= dict(average_unseen=True)
    options |= dict(hidden_window=HIDDEN_WINDOW) if window != HIDDEN_WINDOW else {}
    options |= dict(plain_convolutions=True) if chosen == MLIC else {}
  lrp = f"lrp_anchor.{last}.lrp_transform"
  config = CodecConfig(
      N=N, M=M, num_slices=num_slices, window_size=window, synthesis_width=first_width, contexts=CONTEXTS[chosen],
      transforms="token_mixing" if found == MLIC_V2 else "cheng2020", options=options,
      channel_widths=shape.widths(f"channel_context.{last}.fushion", (0, 2)) if last else FIXED["channel_widths"],
      entropy_widths=shape.widths(f"entropy_parameters_anchor.{last}.fusion", (0, 2, 4)),
      lrp_widths=shape.widths(lrp, shape.numbers(re.escape(lrp) + r"\.(\d+)\.weight$")[:-1]))
  by_channels = dataclasses.replace(config, options=options | dict(head_channels=HEAD_CHANNELS))
  return config if chosen == MLIC or _heads(config) == _heads(by_channels) else by_channels


def _window(shape: Shapes) -> int:
  return (round(shape("local_context.0.relative_position_table")[0]**0.5) + 1) // 2


def _heads(config: CodecConfig) -> list[int]:
  """Returns the numbers of heads for 1, 2, ... decoded slices."""
  return [num_heads(config, count) for count in range(1, max(config.num_slices, 2))]


def variant_of(config: CodecConfig, layout: str) -> str:
  """Returns the name of the model that a config describes, one of CONTEXTS.

  Raises WeightsError in one line if the implementation with this layout has no such model."""
  refuse = lambda what, wanted: WeightsError(f"{what}, which {_owner(layout)} does not have; {wanted}")
  if config.num_rates:
    raise refuse(f"a variable-rate model (num_rates={config.num_rates})", "wanted a single-rate model, num_rates=0")
  variant = next((name for name, contexts in CONTEXTS.items() if set(contexts) == set(config.contexts)), None)
  if variant is None:
    raise refuse(f"contexts={config.contexts}", f"wanted those of one of {CONTEXTS}")
  if layout == AUTHORS and variant == MLIC_V2:
    raise refuse("MLICv2", "wanted mlic, mlic_plus or mlic_plus_plus")
  transforms = "token_mixing" if variant == MLIC_V2 else "cheng2020"
  if config.transforms != transforms:
    raise refuse(f"transforms={config.transforms!r} with the contexts of {variant}", f"wanted {transforms!r}")
  for name, wanted in FIXED.items():
    if getattr(config, name) != wanted:
      raise refuse(f"{name}={getattr(config, name)}", f"wanted {wanted}")
  _check_release(config, refuse, layout)
  _check_options(config, variant, refuse)
  return variant


def summary(config: CodecConfig) -> str:
  """Returns one line about a converted model, for the terminal."""
  name = next(name for name, contexts in CONTEXTS.items() if set(contexts) == set(config.contexts))
  options = "".join(f", {name}={value}" for name, value in dict(config.options).items())
  return f"{name}, N={config.N}, M={config.M}, {config.num_slices} slices, window of {config.window_size}{options}"


def _owner(layout: str) -> str:
  return "CompressAI" if layout == COMPRESSAI else "the authors' code"


def _check_release(config: CodecConfig, refuse, layout: str) -> None:
  """Raises WeightsError unless the widths are those of a release; CompressAI has only those of the second release."""
  second = (0, LRP_WIDTHS)
  first = (config.N if config.N != config.M else 0, shrinking_widths(config, config.num_slices - 1))
  allowed = [second, first] if layout == AUTHORS else [second]
  if (config.synthesis_width, config.lrp_widths) not in allowed:
    raise refuse(f"synthesis_width={config.synthesis_width} with lrp_widths={config.lrp_widths}",
                 "wanted " + " or ".join(f"{width} with {widths}" for width, widths in allowed))


def _check_options(config: CodecConfig, variant: str, refuse) -> None:
  """Raises WeightsError unless the options are those of `variant`.

  `average_unseen` may have either value, because it changes the result only for images of 64x64 pixels."""
  wanted: dict[str, Any] = {}
  if variant == MLIC_V2:
    wanted = V2_OPTIONS
    if not selection_map.has_map(config):
      raise refuse("MLICv2 without a selection map", "wanted selection_widths of one width")
  elif variant == MLIC:
    wanted = dict(plain_convolutions=True)
  unchecked = ("selection_widths", "average_unseen", "hidden_window", "head_channels")
  given = {name: value for name, value in dict(config.options).items() if name not in unchecked}
  defaults = _defaults(config)
  for name in sorted(wanted.keys() | given.keys()):
    if (value := given.get(name, defaults[name])) != (expected := wanted.get(name, defaults[name])):
      raise refuse(f"the option {name}={value}", f"wanted {expected}")
  hidden = dict(config.options).get("hidden_window") or config.window_size
  if "global_intra_softmax" in config.contexts and hidden != HIDDEN_WINDOW:
    raise refuse(f"softmax attention that masks a window of {hidden}", f"wanted hidden_window={HIDDEN_WINDOW}")
  by_channels = dataclasses.replace(config, options=dict(config.options) | dict(head_channels=HEAD_CHANNELS))
  if variant != MLIC and _heads(config) != _heads(by_channels):
    raise refuse(f"{_heads(config)} heads for 1, 2, ... slices of {config.slice_channels} channels",
                 f"wanted head_channels={HEAD_CHANNELS}, which makes {_heads(by_channels)}")


def _defaults(config: CodecConfig) -> dict[str, Any]:
  """Returns {name: default} for the options of all modules that a config names."""
  from mlic_jax.model import contexts, transforms
  modules = [transforms.find(config.transforms), *map(contexts.find, config.contexts), selection_map]
  return {name: value for module in modules for name, value in getattr(module, "OPTIONS", {}).items()}
