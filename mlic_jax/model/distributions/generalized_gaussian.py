"""Generalized Gaussian distribution (Zhang, Li & Liu, arXiv:2411.19320): density ~ exp(-|x / alpha|**shape).

Shape 1 is the Laplace distribution, 2 the Gaussian. alpha is the scale times alpha_min(shape) / SCALE_MIN. The lower
bound alpha_min has the probability outside the zero bin of a Gaussian with SCALE_MIN. The CDF table has SCALE_LEVELS
rows for each of `shapes`. The option `shape_per` selects the shape of an element:

    "model"     the only shape of `shapes`                                             (GGM-m in the paper)
    "channel"   a learned shape of the channel                                         (GGM-c)
    "element"   a predicted shape, the third output of the entropy networks            (GGM-e)

Shapes are learned as positions in `shapes`. Training interpolates geometrically between two shapes, and an element is
coded with the nearest one. With `level_shifts` each channel has a learned shift of its scales, in levels of the CDF
table, which `mlic-jax calibrate` fits to images. Elements are coded with the nearest whole number of levels. The first
two levels are not shifted: most elements are in the first one, and a grid of a portable file may move them to the
second one (coding/portable_cdf.py), which costs next to nothing only without a shift.
"""

import functools
import sys

import jax.numpy as jnp
import numpy as np

from mlic_jax.model import distributions, registry
from mlic_jax.model.distributions import OUTSIDE_MIN, UNSHIFTED_LEVELS, nats_to_bits
from mlic_jax.model.generalized_normal import SHAPE_MAX, SHAPE_MIN, alpha_of_tail, bin_nats, cdf
from mlic_jax.model.scale_table import SCALE_MIN, SCALE_STEP, scale_table
from mlic_jax.model.straight_through import lower_bound

OPTIONS = dict(shapes=(1.5,), shape_per="model", level_shifts=False)
PER = ("model", "channel", "element")
SHAPES_MAX = 32
LAST_UNSHIFTED = float(scale_table()[UNSHIFTED_LEVELS - 1])


def check(config) -> None:
  """Raise a ValueError in one line for invalid options."""
  shapes, per, _ = _options(config).values()
  if per not in PER:
    raise ValueError(f"options has shape_per={per!r}; wanted one of {', '.join(PER)}")
  if (not isinstance(shapes, tuple) or any(type(shape) not in (int, float) for shape in shapes)
      or any(not SHAPE_MIN <= shape <= SHAPE_MAX for shape in shapes) or list(shapes) != sorted(set(shapes))):
    raise ValueError(f"options has shapes={shapes!r}; wanted rising numbers from {SHAPE_MIN} to {SHAPE_MAX}")
  if (len(shapes) == 1) != (per == "model") or not 1 <= len(shapes) <= SHAPES_MAX:
    wanted = "one shape" if per == "model" else f"2 to {SHAPES_MAX} shapes"
    raise ValueError(f"options has {len(shapes)} shapes with shape_per={per!r}; wanted {wanted}")


def _options(config) -> dict:
  settings = registry.options(config, sys.modules[__name__])
  return {name: settings[name] for name in OPTIONS}


def units(shapes: tuple[float, ...]) -> np.ndarray:
  """Return alpha of each shape at scale 1."""
  return alpha_of_tail(OUTSIDE_MIN, np.array(shapes)) / SCALE_MIN


class Distribution(distributions.Distribution):
  """Generalized Gaussian of y - mean; its shape is that of the model, of the channel or of the element."""

  def __init__(self, config):
    super().__init__(config)
    self.shapes, self.per, self.has_shifts = _options(config).values()
    self.num_shapes, self.shapes_agree = len(self.shapes), self.per != "element"
    self.outputs = 3 if self.per == "element" else 2
    self.start = float(np.interp(1.5, self.shapes, np.arange(self.num_shapes)))  # initial position of the shape
    self.channel_parameters = (dict(shape=self.start) if self.per == "channel" else {}) | (
        dict(level_shift=0.0) if self.has_shifts else {})

  @functools.cached_property
  def units(self):
    return units(self.shapes)

  def predict(self, raw, learned):
    raw_scale, mean, *raw_shape = raw
    scale, last, parameters = lower_bound(raw_scale, SCALE_MIN), self.num_shapes - 1, []
    if self.per != "model":
      position = learned["shape"] if self.per == "channel" else raw_shape[0] + self.start
      parameters.append(-lower_bound(-lower_bound(position, 0.0), -float(last)))
    if self.has_shifts:
      parameters.append(learned["level_shift"])
    return mean, scale, tuple(jnp.broadcast_to(each, scale.shape) for each in parameters)

  def bits(self, residual, scale, *parameters):
    if self.has_shifts:
      shifted = lower_bound(scale * jnp.exp(parameters[-1] * SCALE_STEP), SCALE_MIN)
      scale = jnp.where(scale > LAST_UNSHIFTED, shifted, scale)
    if self.per == "model":
      return nats_to_bits(bin_nats(residual, scale * self.units[0], self.shapes[0]))
    shape, unit = (self._between(np.log(values), parameters[0]) for values in (self.shapes, self.units))
    return nats_to_bits(bin_nats(residual, scale * unit, shape))

  def cdf(self, x, scale, shape=0):
    return cdf(x, scale * self.units[shape], self.shapes[shape])

  def shape_positions(self, parameters):
    return None if self.per == "model" else np.asarray(parameters[0])

  def level_shifts(self, parameters):
    return np.rint(parameters[-1]).astype(np.int32) if self.has_shifts else None

  def _between(self, logs, position):
    """Return exp of `logs`, values at the shapes, interpolated at `position`."""
    # A sum of hat functions, because the gradient of a gather is slow on accelerators.
    index = jnp.arange(self.num_shapes, dtype=position.dtype)
    hats = jnp.maximum(1 - jnp.abs(position[..., None] - index), 0)
    return jnp.exp((hats * jnp.asarray(logs, position.dtype)).sum(-1))
