"""Configs of a small codec with every distribution of y and its options, and variables for it."""
import dataclasses

import numpy as np
from conftest import TINY, random_variables

from mlic_jax.config import CodecConfig

SMALL = dataclasses.replace(TINY, transforms="unshuffled", widths=(16, 16), hyper_widths=(16, 16), contexts=(),
                            entropy_widths=(16,), lrp_widths=(), num_rates=0)
SHAPES = (0.8, 1.2, 1.6, 2.0)


def _with(distribution: str, **options) -> CodecConfig:
  return dataclasses.replace(SMALL, distribution=distribution, options=options)


CONFIGS = {
    "gaussian": SMALL, "laplace": _with("laplace"), "logistic": _with("logistic"),
    "one shape": _with("generalized_gaussian", shapes=(1.4,)),
    "shapes by channel": _with("generalized_gaussian", shapes=SHAPES, shape_per="channel", level_shifts=True),
    "shapes by element": _with("generalized_gaussian", shapes=SHAPES, shape_per="element"),
    "two Gaussians": _with("gaussian_mixture", mixture_components=2), "three Gaussians": _with("gaussian_mixture")}


def variables_of(config: CodecConfig) -> dict:
  """Random variables, with scales that suit y, and learned shapes and factors that differ from channel to channel."""
  variables, rng = random_variables(config), np.random.default_rng(1)
  steps = variables["params"]["slices"]["steps"]
  learned = steps.get("distribution_parameters", {})
  for name, values in learned.items():
    learned[name] = rng.uniform(*dict(shape=(0, 3), level_shift=(-2.6, 2.6))[name], values.shape).astype(np.float32)
  for network in "entropy_anchor", "entropy_nonanchor":
    bias = list(steps[network].values())[-1]["bias"]
    bias[:, :config.slice_channels] = 2.5
  return variables
