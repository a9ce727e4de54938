"""Gaussian distribution (Minnen, Balle & Toderici, NeurIPS 2018), as in the MLIC family. The scale is sigma."""

from mlic_jax.model import distributions
from mlic_jax.model.likelihoods import gaussian_bits


class Distribution(distributions.Distribution):
  """Gaussian of y - mean; the scale is its standard deviation."""

  def bits(self, residual, scale):
    return gaussian_bits(residual, 0.0, scale)

  def cdf(self, x, scale, shape=0):
    import scipy.special  # slow to import, and coding does not need it
    return scipy.special.ndtr(x / scale)
