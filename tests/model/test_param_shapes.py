"""Tests of the shapes of parameters, against the parameters that `init` creates."""
import dataclasses

import jax
import numpy as np

from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import build
from mlic_jax.model.param_shapes import param_shapes

LIGHT = CodecConfig(N=4, M=8, num_slices=2, transforms="helpers.light_transforms", hyper_widths=(4, 4),
                    contexts=("channel",), channel_widths=(4,), entropy_widths=(4,), lrp_widths=())
# Of several rates, with a map of both passes; of one rate, with a map of each pass and parameters by channel.
CONFIGS = [
    dataclasses.replace(LIGHT, num_rates=2, lrp_widths=(4,), options=dict(
        selection_widths=(4,), selection_spatial=True)),
    dataclasses.replace(LIGHT, contexts=("global_hyper_anchors",), distribution="generalized_gaussian", options=dict(
        selection_widths=(4,), shapes=(1.0, 2.0), shape_per="channel", level_shifts=True))]


def test_shapes_are_those_of_the_parameters_of_init():
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  for config in CONFIGS:
    init = lambda x, config=config: build(config).init(jax.random.key(0), x, 1.0 if config.num_rates else None)
    assert param_shapes(config) == jax.eval_shape(init, x)["params"]


def test_the_caller_may_change_what_it_gets():
  changed = param_shapes(LIGHT)
  changed["slices"]["steps"].clear()
  assert param_shapes(LIGHT)["slices"]["steps"]
