"""Guided selective compression: a predicted map of the coded elements (MLICv2, section 3.4.4, reconstructed).

Elements that the map skips are their means and cost no bits. Encoder and decoder predict the map before each pass, so
it is not transmitted. The map is a classifier of the elements that are at least `selection_distance` from their means.
Its loss trains the map only, and the rate does not train the map.

Options:
  selection_widths     hidden widths of the networks, one network per pass; the default () is a model without a map
  selection_distance   distance from the mean, as above. MLICv2 has 0.3, as far as is known. With 0.5 the class is the
                       elements that round to another integer than the mean.
  selection_chance     an element is skipped if the probability of this distance is lower
Options for the interpretation of MLICv2 in CompressAI:
  selection_spatial    one network for both passes of a slice, with 3x3 convolutions and one hidden width;
                       `selection_distance` is the scale at which an element is coded before training
  selection_lrp        False: a skipped element is exactly its mean, without the latent residual prediction
CompressAI has a selection_chance of 0.5.
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
PREFIX = "map_"           # of the names of its modules
INITIAL_LOG_ODDS = 4.0    # log-odds of an untrained map, so that all elements are coded
INITIAL_SLOPE = 8.0       # log-odds of the spatial map per unit of the scale, as in CompressAI
SKIPPED_SYMBOL = np.int32(-2**31)  # stands for the symbol of a skipped element without selection_lrp


def check(config: CodecConfig) -> None:
  """Raise a ValueError in one line for invalid options."""
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
    raise ValueError("options has selection_lrp=False without selection_widths, which it needs")


def options(config: CodecConfig) -> dict:
  """Return {name: value} of OPTIONS with the values of the config."""
  return registry.options(config, sys.modules[__name__])


def is_map_parameter(path: tuple) -> bool:
  """Return whether a parameter belongs to a map, given its path from jax.tree_util."""
  return any(str(getattr(key, "key", "")).startswith(PREFIX) for key in path)


def skipped_symbol(config: CodecConfig) -> np.int32:
  """Return the symbol that stands for a skipped element: 0, or SKIPPED_SYMBOL if the passes have to know."""
  return np.int32(0) if options(config)["selection_lrp"] else SKIPPED_SYMBOL


def coded_symbols(config: CodecConfig, symbols: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  """Return the symbols of a pass with 0 for SKIPPED_SYMBOL, and the mask of coded ones; None if passes need no mask."""
  if options(config)["selection_lrp"]:
    return symbols, None
  coded = symbols != SKIPPED_SYMBOL
  return jnp.where(coded, symbols, 0), coded


def has_map(config: CodecConfig) -> bool:
  """Return whether a codec has a selection map."""
  return bool(options(config)["selection_widths"])


class SelectionMap(nn.Module):
  """Network of the map of one pass, from the prior and its features: (B, h, w/2, Cs), above 0 where coded.

  The output is the log-odds relative to those of selection_chance."""
  config: CodecConfig

  @nn.compact
  def __call__(self, features: Sequence[jax.Array], mean: jax.Array, scale: jax.Array,
               live: jax.Array | np.ndarray) -> jax.Array:
    """Return the map.

    Args:
      features: packed, (B, h, w/2, ...).
      mean, scale: (B, h, w/2, Cs).
      live: mask of the channels of `features` that are not zero in this slice.
    """
    settings = options(self.config)
    inputs = jax.lax.stop_gradient(jnp.concatenate([*features, mean, jnp.log(scale)], axis=-1))
    live = jnp.concatenate([live, jnp.ones(2 * mean.shape[-1], bool)])
    network = ConvStack((*settings["selection_widths"], mean.shape[-1]), kernel_size=1, name="stack")
    return network(inputs, live) + INITIAL_LOG_ODDS - _log_odds(settings["selection_chance"])


class SpatialSelectionMap(nn.Module):
  """Network of the map for both passes of a slice, as in CompressAI: (B, h, w/2, Cs), above 0 where coded."""
  config: CodecConfig

  @nn.compact
  def __call__(self, side: Sequence[jax.Array], mean: jax.Array, scale: jax.Array, anchors: bool,
               live: jax.Array | np.ndarray) -> jax.Array:
    """Return the map of one pass.

    Args:
      side: features of all positions, (B, h, w, ...).
      mean, scale: (B, h, w/2, Cs) of the pass; the scale is the output of the network, without lower bound.
      anchors: whether this is the pass of the anchors.
      live: mask of the channels of `side` that are not zero in this slice.
    """
    settings, cs = options(self.config), mean.shape[-1]
    features, mean, scale = jax.lax.stop_gradient((jnp.concatenate(side, axis=-1), mean, scale))
    hidden, = settings["selection_widths"]
    wide = [unpack(t, anchors) for t in (scale, mean, (scale >= settings["selection_distance"]).astype(scale.dtype))]
    x = jnp.concatenate([Conv(hidden, 1, name="side")(features, live), *wide], axis=-1)
    x = gelu(Conv(hidden, name="conv0")(x))
    x = Conv(cs, 1, name="conv2")(gelu(Conv(hidden, name="conv1")(x)))
    slope = parameter(self, "slope", nn.initializers.constant(INITIAL_SLOPE), ())
    bias = parameter(self, "pass_bias", nn.initializers.constant(INITIAL_LOG_ODDS), (2, cs))  # anchors, non-anchors
    log_odds = pack(x, anchors) + slope * (scale - settings["selection_distance"]) + bias[0 if anchors else 1]
    return log_odds - _log_odds(settings["selection_chance"])


def _log_odds(chance: float) -> float:
  return float(np.log(chance / (1 - chance)))


def cross_entropy(config: CodecConfig, residual: jax.Array, keep: jax.Array) -> jax.Array:
  """Return the loss of the map in nats per element.

  `keep` is the output of the map, and `residual` the elements less their means."""
  settings = options(config)
  log_odds = keep + _log_odds(settings["selection_chance"])
  far = jnp.abs(jax.lax.stop_gradient(residual)) >= settings["selection_distance"]
  return jax.nn.softplus(log_odds) - far * log_odds
