"""The Gaussian of Minnen, Balle & Toderici (NeurIPS 2018), of all models of the MLIC family; its scale is sigma."""

import scipy.special

from mlic_jax.model import distributions
from mlic_jax.model.likelihoods import gaussian_bits


class Distribution(distributions.Distribution):
  """See the module."""

  def bits(self, residual, scale):
    return gaussian_bits(residual, 0.0, scale)

  def cdf(self, x, scale, shape=0):
    return scipy.special.ndtr(x / scale)
