"""Tests of a training step: splitting a batch over devices and over time changes nothing."""
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY, random_variables
from helpers.small_training import small_config  # noqa: F401 (a fixture)

from mlic_jax.coding import calibration
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.training import parallel, warm_start
from mlic_jax.training.step import TrainState, draw_num_received

WORKER = Path(__file__).parents[1] / "helpers" / "training_worker.py"


def test_slices_are_missing_with_the_given_probability():
  draw = jax.pmap(lambda key: draw_num_received(key, 4000, 10, 0.25), axis_name=parallel.AXIS)
  received = np.asarray(draw(jax.random.split(jax.random.PRNGKey(0), 1)))[0]
  assert 0.22 < np.mean(received < 10) < 0.28
  assert set(received[received < 10]) == set(range(10)) and received.max() == 10


def test_a_training_starts_from_the_parameters_of_a_checkpoint(config, tiny_checkpoint):
  params = random_variables(TINY)["params"]
  blank = jax.tree.map(np.zeros_like, params)
  state = warm_start.start_from(str(tiny_checkpoint), TrainState(0, blank, None, blank, None), TINY)
  jax.tree.map(np.testing.assert_array_equal, (state.params, state.ema_params), (params, params))
  short = dict(blank, h_a=dict(blank["h_a"], conv0=dict(kernel=np.zeros((3, 3, 8, 16)), bias=np.zeros(16))))
  with pytest.raises(ConfigError, match=r"\['h_a'\]\['conv0'\]\['kernel'\] has shape \(3, 3, 32, 16\); wanted "):
    warm_start.start_from(str(tiny_checkpoint), TrainState(0, short, None, None, None), TINY)


def test_a_training_starts_from_a_checkpoint_with_another_distribution(tmp_path):
  """The networks are those of the checkpoint. The parameters of channels are too if the distribution is the same."""
  small = dataclasses.replace(TINY, transforms="unshuffled", widths=(16, 16), hyper_widths=(16, 16), contexts=(),
                              entropy_widths=(16,), lrp_widths=())
  calibrated = calibration.calibrated_config(small)
  other = dataclasses.replace(calibrated, options=dict(calibrated.options, shapes=(1.0, 2.0)))
  params = {config: random_variables(config)["params"] for config in (small, calibrated, other)}
  for config in small, calibrated:
    save_model(tmp_path / config.distribution, config, {"params": params[config]})
  for config, checkpoint, own in ((small, calibrated, True), (calibrated, small, True), (calibrated, calibrated, False),
                                  (other, calibrated, True)):
    blank = jax.tree.map(np.zeros_like, params[config])
    state = TrainState(0, blank, None, None, None)
    steps = warm_start.start_from(str(tmp_path / checkpoint.distribution), state, config).params["slices"]["steps"]
    given, wanted = params[checkpoint]["slices"]["steps"], blank["slices"]["steps"]
    jax.tree.map(np.testing.assert_array_equal, steps["entropy_anchor"], given["entropy_anchor"])
    assert jax.tree.structure(steps) == jax.tree.structure(wanted)
    source = wanted if own else given
    for name, value in steps.get("distribution_parameters", {}).items():
      np.testing.assert_array_equal(value, source["distribution_parameters"][name])


def test_a_teacher_of_other_rates_is_refused(config, tiny_checkpoint):
  config.teacher = str(tiny_checkpoint)
  with pytest.raises(ConfigError, match="has 3 rates; wanted a single rate or 2"):
    warm_start.load_teacher(config, CodecConfig(**config.model))


def losses_on(devices: list[int], model: str) -> list[list[float]]:
  """The loss curve on each number of devices."""
  command = [sys.executable, str(WORKER), model, *map(str, devices)]
  env = dict(os.environ, JAX_PLATFORMS="cpu")
  done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
  return [json.loads(line) for line in done.stdout.splitlines()[-len(devices):]]


@pytest.mark.parametrize("model", ["stand-in", pytest.param("codec", marks=pytest.mark.slow)])
def test_the_loss_curve_does_not_depend_on_the_number_of_devices(model):
  """tests/training/test_multiprocess.py has the same test for processes."""
  one, eight = losses_on([1, 8], model)
  assert one[-1] < 0.9 * one[0]
  np.testing.assert_allclose(eight, one, rtol=1e-4)
