"""Scales of the CDF rows of y. The module does not import jax, so that reading a file starts fast."""
import numpy as np

SCALE_MIN = 0.11       # as in TFC and CompressAI; a narrower Gaussian has 99.999 % of its mass in one bin
SCALE_MAX = 256.0
SCALE_LEVELS = 64
SCALE_STEP = float(np.log(SCALE_MAX / SCALE_MIN)) / (SCALE_LEVELS - 1)  # step of the logarithm between levels


def scale_table() -> np.ndarray:
  """Return the scales (SCALE_LEVELS,) float32, log-spaced."""
  return np.exp(np.linspace(np.log(SCALE_MIN), np.log(SCALE_MAX), SCALE_LEVELS)).astype(np.float32)
