"""Mixture of two or three Gaussians (Cheng et al., CVPR 2020) with predicted weights, offsets and scales.

The first component is at the mean of the rounding; the others have offsets from it. The scale of an element, which skip
coding uses, is the root mean square distance from this mean.

Distributions with five or eight parameters do not fit into a table. Each element has its own CDF row, computed in
float64 by NumPy from the float32 parameters. Rows agree only if the parameters are equal in all bits, so files are not
portable. (A grid for each parameter, as portable files have for the scale, would be safe for few blocks.)
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mlic_jax.model import distributions, registry
from mlic_jax.model.distributions import nats_to_bits
from mlic_jax.model.generalized_normal import bin_nats
from mlic_jax.model.scale_table import SCALE_MAX, SCALE_MIN
from mlic_jax.model.straight_through import lower_bound

OPTIONS = dict(mixture_components=3)
WIDTH = 6.2          # range of a component on either side in standard deviations, with a mass outside of 6e-10
CELLS_MAX = 1024     # maximum number of cells on either side of the mean; other values are escaped
PRECISION = 16       # bits of the probabilities


def check(config) -> None:
  """Raise a ValueError in one line for invalid options."""
  count = _components(config)
  if count not in (2, 3):
    raise ValueError(f"options has mixture_components={count}; wanted 2 or 3")


def _components(config) -> int:
  return registry.options(config, sys.modules[__name__])["mixture_components"]


class Distribution(distributions.Distribution):
  """Mixture of K Gaussians. The parameters are K scales, K - 1 offsets and K logarithms of weights."""
  num_shapes = 0
  not_portable = "each element has its own CDF row, which differs between machines"

  def __init__(self, config):
    super().__init__(config)
    self.count = _components(config)
    self.outputs = 3 * self.count - 1

  def predict(self, raw, learned):
    k = self.count
    raw_scale, mean, *others = raw
    scales = [lower_bound(each, SCALE_MIN) for each in (raw_scale, *others[:k - 1])]
    offsets, logits = others[k - 1:2 * k - 2], others[2 * k - 2:]
    log_weights = jax.nn.log_softmax(jnp.stack([jnp.zeros_like(mean), *logits]), axis=0)
    squares = sum(jnp.exp(w) * (s**2 + d**2) for w, s, d in zip(log_weights, scales, (0.0, *offsets)))
    return mean, jnp.sqrt(squares), (*scales, *offsets, *log_weights)

  def bits(self, residual, scale, *parameters):
    scales, offsets, log_weights = self._split(parameters)
    nats = [bin_nats(residual - d, 2**0.5 * s, 2.0) - w for s, d, w in zip(scales, (0.0, *offsets), log_weights)]
    return nats_to_bits(-jax.nn.logsumexp(-jnp.stack(nats), axis=0))

  def element_table(self, parameters: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return `lookup` and `offset` of a CDFTable with one row per element, given float32 parameters (n,) each.

    A row begins with the precision. Count j is j + floor(F (2**PRECISION - cells - 1)), with F the mass of the cells
    before cell j, so that every cell has at least one count."""
    scales, offsets, log_weights = (np.stack(each).astype(np.float64) for each in self._split(parameters))
    finite = lambda x, low, high: np.clip(np.nan_to_num(x, nan=0.0), low, high)   # damaged files can give any value
    scales = finite(scales, SCALE_MIN, SCALE_MAX)
    centers = np.concatenate([np.zeros_like(offsets[:1]), finite(offsets, -CELLS_MAX, CELLS_MAX)])
    weights = np.exp(finite(log_weights, -100, 0))
    weights /= weights.sum(0)
    low = np.maximum(np.floor((centers - WIDTH * scales).min(0)), -CELLS_MAX).astype(np.int64)
    high = np.minimum(np.ceil((centers + WIDTH * scales).max(0)), CELLS_MAX).astype(np.int64)
    cells = high - low + 1
    ends = np.cumsum(cells + 3)                                     # a row: the precision, cells + 1 counts, the total
    begins = ends - cells - 3
    element = np.repeat(np.arange(len(cells)), cells + 1)           # of every count but the last of a row
    cell = np.arange(len(element)) - np.repeat(np.cumsum(cells + 1) - cells - 1, cells + 1)
    edge = low[element] - 0.5 + cell
    below = sum(w[element] * scipy.special.ndtr((edge - c[element]) / s[element])
                for w, c, s in zip(weights, centers, scales))
    first = np.repeat(below[cell == 0], cells + 1)
    lookup = np.empty(ends[-1] if len(ends) else 0, np.int32)
    lookup[begins], lookup[ends - 1] = PRECISION, 2**PRECISION
    lookup[begins[element] + 1 + cell] = cell + np.floor((below - first) * (2**PRECISION - 1 - cells[element]))
    return lookup, low.astype(np.int32)

  def _split(self, parameters):
    k = self.count
    return parameters[:k], parameters[k:2 * k - 1], parameters[2 * k - 1:]
