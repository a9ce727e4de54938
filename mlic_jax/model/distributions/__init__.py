"""Distributions of y: what an element less its mean costs, and the coding table that follows from it.

One file each; a config names them by file name (`distribution="laplace"`). A name with a dot is an import path, so that
a distribution of one's own need not lie here. A file has a class `Distribution(config)`, derived from the one below.

Scales are those of the coding table: from SCALE_MIN to SCALE_MAX in SCALE_LEVELS steps, whatever the distribution. It
is up to a distribution what its own parameter is at a scale. Those of this folder multiply the scale, so that at
SCALE_MIN the zero bin is as probable as that of a Gaussian with the standard deviation SCALE_MIN: an element that is
certain costs as little under each of them. For a generalized Gaussian this is a lower bound that depends on the shape.

Where it has settings of its own, the file has OPTIONS, a dict of their names and defaults; see registry.options. Where
there are configs that it cannot be built of, it has check(config), which raises ValueError in one line.
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

BITS_MAX = -math.log2(1e-9)   # of an element; what lies beyond is coded by escape and costs about as much
# Probability outside the zero bin of a Gaussian with the standard deviation SCALE_MIN, 5.5e-6.
OUTSIDE_MIN = math.erfc(0.5 / SCALE_MIN / math.sqrt(2))


class Distribution:
  """The base of a distribution, symmetric around its mean. One with a scale alone has to have `bits` and `cdf`.

    bits(residual, scale, *parameters)  bits of elements less their means, integers or not: those of the unit bin
                                        around each; broadcasts. At most BITS_MAX, with gradients that lead back from
                                        there (see `bounded`). Parameters are those that `predict` returns.
    cdf(x, scale, shape)                the cumulative distribution of a shape, by its index, at a scale. By NumPy in
                                        float64, for x of at most 1/2: the coding table takes the bins above the mean
                                        from those below it, where differences keep their digits.
    element_table(parameters)           for num_shapes = 0, in place of cdf: `lookup` and `offset` of a CDFTable
                                        with a row for each of n elements, from their parameters, (n,) each. The same
                                        parameters make the same integers.

  Attributes:
    config: of the codec.
    outputs: values of the entropy networks for an element; the first is about its scale, the second is its mean.
    channel_parameters: {name: start} of parameters that each channel of y learns, stacked (num_slices, Cs).
    num_shapes: shapes with rows of their own, each SCALE_LEVELS rows; 0 for a distribution without a coding table,
      which has `element_table` instead.
    shapes_agree: whether machines agree on the shape of an element, as they do if it comes from a checkpoint.
    not_portable: why there are no portable files with it, or None.
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
    """Mean, scale of at least SCALE_MIN, and further parameters, each (B, h, w, Cs).

    Args:
      raw: the outputs of the entropy networks, `outputs` arrays (B, h, w, Cs).
      learned: the parameters of `channel_parameters`, (Cs,) each.
    """
    raw_scale, mean = raw
    return mean, lower_bound(raw_scale, SCALE_MIN), ()

  def shape_positions(self, parameters: tuple[np.ndarray, ...]) -> np.ndarray | None:
    """float32 position of each element's shape among the shapes, 0 to num_shapes - 1, whose nearest integer is the
    index of its shape; None where there is one shape. By NumPy on the host, exact on every machine."""
    return None


def bounded(bits: jax.Array) -> jax.Array:
  """min(bits, BITS_MAX), with the gradient of `bits` wherever a descent step would lower them."""
  return -lower_bound(-bits, -BITS_MAX)


def nats_to_bits(nats: jax.Array) -> jax.Array:
  """Bits of at most BITS_MAX."""
  return bounded(nats * jnp.asarray(1 / math.log(2), jnp.result_type(nats)))


def available() -> list[str]:
  """The names that need no path: the modules of this folder."""
  return registry.available(__name__)


def find(name: str) -> ModuleType:
  """The module of the distribution of that name; PartError when there is none, or when it lacks a method."""
  module = registry.find(name, __name__, ("Distribution",))
  found = module.Distribution
  for method in ("bits", "cdf" if getattr(found, "num_shapes", 1) else "element_table"):
    if not callable(getattr(found, method, None)):
      raise registry.PartError(f"distribution {name!r}: {module.__file__} has no Distribution.{method}")
  return module


def make_distribution(config: CodecConfig) -> Distribution:
  """The distribution of a config; PartError when there is none of its name."""
  found: Distribution = find(config.distribution).Distribution(config)
  return found
