"""Guided selective compression: a predicted map of the elements that are coded (MLICv2, section 3.4.4, reconstructed).

An element that the map leaves out is its mean, and costs nothing. Both sides predict the map, from what they know
before the pass, so that nothing is sent for it. It learns by itself, as a classifier: which elements lie at least
`selection_distance` from their means. Nothing else learns from that, and the map learns nothing from the rate.

`selection_widths` of the options are the hidden widths of its networks, one for each pass; (), as it is unless a config
says otherwise, is a model without a map. An element is left out where its chance of being that far off is below
`selection_chance`. MLICv2 has a distance of 0.3, by what is known; 0.5 asks for the elements that round to another
integer than the mean.

CompressAI reads MLICv2 otherwise. With `selection_spatial` the network is CompressAI's, one for both passes of a slice
with 3x3 convolutions, of one hidden width; `selection_distance` is then the scale from which on an element is coded,
but for what the network learns. Without `selection_lrp` an element that is left out is exactly its mean, without the
latent residual prediction. CompressAI codes from an even chance (0.5) on.
"""
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry
from mlic_jax.model.activation import gelu
from mlic_jax.model.checkerboard import pack, unpack
from mlic_jax.model.layers import Conv, ConvStack
from mlic_jax.model.lazy_params import parameter

OPTIONS = dict(selection_widths=(), selection_distance=0.5, selection_chance=0.02, selection_spatial=False,
               selection_lrp=True)
NAME = "map_"           # begins the names of its modules
FAR_AT_FIRST = 4.0      # log-odds of an untrained map: everything is coded
SLOPE_AT_FIRST = 8.0    # of the spatial map: log-odds per unit of the scale, as in CompressAI
LEFT_OUT = np.int32(-2**31)  # in place of the symbol of an element that is left out, where selection_lrp is off


def check(config: CodecConfig) -> None:
  """ValueError in one line for settings that no map can have."""
  settings = options(config)
  widths, chance, distance = (settings[f"selection_{name}"] for name in ("widths", "chance", "distance"))
  if not isinstance(widths, tuple) or any(type(width) is not int or width < 1 for width in widths):
    raise ValueError(f"options has selection_widths={widths!r}; wanted widths of at least 1, or ()")
  if type(chance) not in (int, float) or not 0 < chance < 1:
    raise ValueError(f"options has selection_chance={chance!r}; wanted a number between 0 and 1")
  if type(distance) not in (int, float) or not 0 < distance:
    raise ValueError(f"options has selection_distance={distance!r}; wanted a number above 0")
  if settings["selection_spatial"] and len(widths) != 1:
    raise ValueError(f"options has selection_spatial with selection_widths={widths}; wanted one width")
  if not (settings["selection_lrp"] or widths):
    raise ValueError("options has selection_lrp=False without selection_widths, which make the map that it is about")


def options(config: CodecConfig) -> dict:
  """{name: value} of OPTIONS, as the config has them."""
  return registry.options(config, sys.modules[__name__])


def is_of_map(path: tuple) -> bool:
  """Whether a parameter belongs to a map; `path` as jax.tree_util gives it."""
  return any(str(getattr(key, "key", "")).startswith(NAME) for key in path)


def symbol_left_out(config: CodecConfig) -> np.int32:
  """What stands in place of the symbol of an element that is left out: 0, or LEFT_OUT for the passes to see it."""
  return np.int32(0) if options(config)["selection_lrp"] else LEFT_OUT


def coded_symbols(config: CodecConfig, symbols: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  """The symbols of a pass, with 0 for LEFT_OUT, and which are coded; None where the passes need not know."""
  if options(config)["selection_lrp"]:
    return symbols, None
  coded = symbols != LEFT_OUT
  return jnp.where(coded, symbols, 0), coded


def has_map(config: CodecConfig) -> bool:
  """Whether a codec predicts which elements are coded."""
  return bool(options(config)["selection_widths"])


class SelectionMap(nn.Module):
  """What says which elements of a pass are coded: those where it is above 0; (B, h, w/2, Cs) log-odds.

  It sees the features that the prior comes from, and the prior."""
  config: CodecConfig

  @nn.compact
  def __call__(self, features: Sequence[jax.Array], mean: jax.Array, scale: jax.Array,
               live: jax.Array | np.ndarray) -> jax.Array:
    """features: packed, (B, h, w/2, ...), of which `live` are not zero for this slice; mean, scale (B, h, w/2, Cs)."""
    settings = options(self.config)
    inputs = jax.lax.stop_gradient(jnp.concatenate([*features, mean, jnp.log(scale)], axis=-1))
    live = jnp.concatenate([live, jnp.ones(2 * mean.shape[-1], bool)])
    network = ConvStack((*settings["selection_widths"], mean.shape[-1]), kernel_size=1, name="stack")
    return network(inputs, live) + FAR_AT_FIRST - _log_odds(settings["selection_chance"])


class SpatialSelectionMap(nn.Module):
  """CompressAI's map, for both passes of a slice: the log-odds of a pass, (B, h, w/2, Cs), above 0 where coded."""
  config: CodecConfig

  @nn.compact
  def __call__(self, side: Sequence[jax.Array], mean: jax.Array, scale: jax.Array, anchors: bool,
               live: jax.Array | np.ndarray) -> jax.Array:
    """side: features of all positions, (B, h, w, ...), of which `live` are not zero for this slice; mean and scale
    (B, h, w/2, Cs) of one pass, the scale as the network gives it, without its lower bound."""
    settings, cs = options(self.config), mean.shape[-1]
    features, mean, scale = jax.lax.stop_gradient((jnp.concatenate(side, axis=-1), mean, scale))
    hidden, = settings["selection_widths"]
    wide = [unpack(t, anchors) for t in (scale, mean, (scale >= settings["selection_distance"]).astype(scale.dtype))]
    x = jnp.concatenate([Conv(hidden, 1, name="side")(features, live), *wide], axis=-1)
    x = gelu(Conv(hidden, name="conv0")(x))
    x = Conv(cs, 1, name="conv2")(gelu(Conv(hidden, name="conv1")(x)))
    slope = parameter(self, "slope", nn.initializers.constant(SLOPE_AT_FIRST), ())
    bias = parameter(self, "pass_bias", nn.initializers.constant(FAR_AT_FIRST), (2, cs))  # of anchors, of the others
    log_odds = pack(x, anchors) + slope * (scale - settings["selection_distance"]) + bias[0 if anchors else 1]
    return log_odds - _log_odds(settings["selection_chance"])


def _log_odds(chance: float) -> float:
  return float(np.log(chance / (1 - chance)))


def cross_entropy(config: CodecConfig, residual: jax.Array, keep: jax.Array) -> jax.Array:
  """What the map learns by, element by element in nats: `keep` are its log-odds over those of selection_chance,
  `residual` what an element lies from its mean."""
  settings = options(config)
  log_odds = keep + _log_odds(settings["selection_chance"])
  far = jnp.abs(jax.lax.stop_gradient(residual)) >= settings["selection_distance"]
  return jax.nn.softplus(log_odds) - far * log_odds
