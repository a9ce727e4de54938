"""Distributions of y given its mean: bits per element, and the CDF table.

Each file is one distribution, and a config selects it by file name (`distribution="laplace"`). A name with a dot is the
import path of a custom distribution. A file has a class `Distribution(config)`, derived from the one below.

All distributions have the scales of the CDF table, from SCALE_MIN to SCALE_MAX in SCALE_LEVELS steps. A distribution
derives its own parameter from the scale. Those of this folder multiply the scale, so that at SCALE_MIN the zero bin has
the probability of a Gaussian with the standard deviation SCALE_MIN, and elements without uncertainty cost the same. For
the generalized Gaussian the factor depends on the shape.

A module with options has OPTIONS, a dict of names and defaults; see registry.options. A module that does not support
all configs has check(config), which raises a ValueError in one line.
"""

import math
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry
from mlic_jax.model.scale_table import SCALE_MIN
from mlic_jax.model.straight_through import lower_bound

BITS_MAX = -math.log2(1e-9)   # maximum for an element, about the cost of an escape code
# Probability outside the zero bin of a Gaussian with the standard deviation SCALE_MIN, 5.5e-6.
OUTSIDE_MIN = math.erfc(0.5 / SCALE_MIN / math.sqrt(2))
UNSHIFTED_LEVELS = 2          # number of levels that Distribution.level_shifts leaves as they are


class Distribution:
  """Base class of a distribution that is symmetric around its mean. A subclass defines `bits` and `cdf`.

    bits(residual, scale, *parameters)  bits of the unit bins around elements less their means; broadcasts. At most
                                        BITS_MAX, with gradients that reduce larger values (see `bounded`). The
                                        parameters are those of `predict`.
    cdf(x, scale, shape)                cumulative distribution of a shape, given its index, at a scale, by NumPy in
                                        float64. x is at most 1/2: the CDF table computes bins above the mean from those
                                        below, where differences are exact.
    element_table(parameters)           with num_shapes = 0, instead of cdf: `lookup` and `offset` of a CDFTable with
                                        one row for each of n elements, from their parameters, (n,) each. It is
                                        deterministic.

  Attributes:
    config: the config of the codec.
    outputs: number of outputs of the entropy networks per element; the first is for its scale, the second is its mean.
    channel_parameters: {name: initial value} of learned parameters per channel of y, stacked (num_slices, Cs).
    num_shapes: number of shapes, with SCALE_LEVELS rows each; 0 for a distribution with `element_table`.
    shapes_agree: whether all machines find the same shape of an element, as they do if it is in the checkpoint.
    not_portable: the reason why files are not portable, or None.
  """
  outputs = 2
  channel_parameters: dict[str, float] = {}
  num_shapes = 1
  shapes_agree = True
  not_portable: str | None = None
  bits: Callable[..., jax.Array]
  cdf: Callable[..., np.ndarray]
  element_table: Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, np.ndarray]]

  def __init__(self, config: CodecConfig):
    self.config = config

  def predict(self, raw: list[jax.Array], learned: dict[str, jax.Array],
              ) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Return mean, scale (at least SCALE_MIN) and a tuple of other parameters, (B, h, w, Cs) each.

    Args:
      raw: the outputs of the entropy networks, `outputs` arrays (B, h, w, Cs).
      learned: the parameters of `channel_parameters`, (Cs,) each.
    """
    raw_scale, mean = raw
    return mean, lower_bound(raw_scale, SCALE_MIN), ()

  def shape_positions(self, parameters: tuple[np.ndarray, ...]) -> np.ndarray | None:
    """Return the float32 position of the shape of each element in 0..num_shapes - 1, or None with one shape.

    The nearest integer is the index of the shape. NumPy on the host computes it, exactly on every machine."""
    return None

  def level_shifts(self, parameters: tuple[np.ndarray, ...]) -> np.ndarray | None:
    """Return the int32 number of levels that the table adds to the level of each element, or None for no shifts.

    Elements of the first UNSHIFTED_LEVELS levels are not shifted. All machines have to find the same shifts, so they
    are not predicted."""
    return None


def bounded(bits: jax.Array) -> jax.Array:
  """Return min(bits, BITS_MAX), with the gradient of `bits` where a descent step reduces them."""
  return -lower_bound(-bits, -BITS_MAX)


def nats_to_bits(nats: jax.Array) -> jax.Array:
  """Convert nats to bits, at most BITS_MAX."""
  return bounded(nats * jnp.asarray(1 / math.log(2), jnp.result_type(nats)))


def available() -> list[str]:
  """Return the names of the distributions of this package."""
  return registry.available(__name__)


def find(name: str) -> ModuleType:
  """Return the module of a distribution. PartError for an unknown name, or if it lacks a method."""
  module = registry.find(name, __name__, ("Distribution",))
  found = module.Distribution
  for method in ("bits", "cdf" if getattr(found, "num_shapes", 1) else "element_table"):
    if not callable(getattr(found, method, None)):
      raise registry.PartError(f"distribution {name!r}: {module.__file__} has no Distribution.{method}")
  return module


def make_distribution(config: CodecConfig) -> Distribution:
  """Build the distribution of a config. PartError for an unknown name."""
  found: Distribution = find(config.distribution).Distribution(config)
  return found
