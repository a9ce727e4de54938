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
from helpers.linear_stub import StandIn
from helpers.small_training import small_config  # noqa: F401 (a fixture)

from mlic_jax.coding import calibration
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.training import parallel, warm_start
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import TrainState, create_state, draw_num_received, make_train_step

WORKER = Path(__file__).parents[1] / "helpers" / "training_worker.py"


def one_step(config, x, teacher=None, teacher_variables=None):
  model, optimizer = StandIn(CodecConfig(**config.model)), make_optimizer(config)
  state = create_state(config, model, optimizer)
  step = parallel.pmap_over_batch(make_train_step(config, model, optimizer, teacher, "cpu"))
  state, metrics = step(parallel.replicate(state), parallel.shard(x), parallel.replicate(teacher_variables))
  return parallel.unreplicate(state), parallel.unreplicate(metrics)


@pytest.fixture(name="x")
def pixels():
  return np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)


def test_accumulated_gradients_are_those_of_the_whole_batch(config, x):
  config.optimizer = "adam"
  whole, whole_metrics = one_step(config, x)
  config.accumulate_steps = 2
  parts, parts_metrics = one_step(config, x)
  for name, value in whole_metrics.items():
    np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-4, err_msg=name)
  moments = lambda state: jax.tree.leaves(state.opt_state.inner_states["main"].inner_state)
  for a, b in zip(moments(whole), moments(parts)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_average_is_over_the_steps_so_far_while_these_are_few(config, x):
  config.optimizer, config.ema_decay = "adam", 0.999
  model, optimizer = StandIn(CodecConfig(**config.model)), make_optimizer(config)
  state = create_state(config, model, optimizer)
  state = state.replace(ema_params=jax.tree.map(np.zeros_like, state.params))
  step = parallel.pmap_over_batch(make_train_step(config, model, optimizer, None, "cpu"))
  for taken, decay in ((0, 0.1), (9, 10 / 19), (10**6, 0.999)):
    after, _ = step(parallel.replicate(state.replace(step=np.int32(taken))), parallel.shard(x), None)
    after = parallel.unreplicate(after)
    jax.tree.map(lambda average, p, decay=decay: np.testing.assert_allclose(average, (1 - decay) * p, rtol=1e-3),
                 after.ema_params, after.params)


def test_the_bits_of_the_slices_sum_to_those_of_y(config, x):
  _, metrics = one_step(config, x)
  np.testing.assert_allclose(metrics["bpp_slice_0"] + metrics["bpp_slice_1"], metrics["bpp_y"], rtol=1e-5)


def test_a_sample_counts_by_its_rate_in_the_gradient_and_not_in_the_figures(config, x):
  config.optimizer, config.lmbdas, config.batch_size = "adam", (0.01, 0.01, 0.16), 1
  norms = []
  for config.rate_weighting in (0.0, 0.5):
    _, metrics = one_step(config, x[:1])
    norms.append(metrics["grad_norm"])
    lmbda = (metrics["loss"] - metrics["bpp"]) / (255**2 * metrics["mse"])
  weight = {0.01: 10 / 7.5, 0.16: 2.5 / 7.5}[round(float(lmbda), 4)]
  np.testing.assert_allclose(norms[1] / norms[0], weight, rtol=1e-3)


def test_slices_are_missing_with_the_given_probability():
  draw = jax.pmap(lambda key: draw_num_received(key, 4000, 10, 0.25), axis_name=parallel.AXIS)
  received = np.asarray(draw(jax.random.split(jax.random.PRNGKey(0), 1)))[0]
  assert 0.22 < np.mean(received < 10) < 0.28
  assert set(received[received < 10]) == set(range(10)) and received.max() == 10


def test_a_teacher_moves_the_target_and_not_the_measured_distortion(config, x):
  alone, alone_metrics = one_step(config, x)
  teacher = StandIn(CodecConfig(**config.model))
  variables = {"params": jax.tree.map(lambda p: p * 0, alone.params)}  # a teacher that sees black
  config.teacher, config.distillation_weight = "black", 1.0
  _, metrics = one_step(config, x, teacher, variables)
  np.testing.assert_allclose(metrics["mse"], alone_metrics["mse"], rtol=1e-5)
  assert abs(metrics["loss"] - alone_metrics["loss"]) > 0.1


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
  calibrated = calibration.calibrated_config(TINY)
  other = dataclasses.replace(calibrated, options=dict(calibrated.options, shapes=(1.0, 2.0)))
  params = {config: random_variables(config)["params"] for config in (TINY, calibrated, other)}
  for config in TINY, calibrated:
    save_model(tmp_path / config.distribution, config, {"params": params[config]})
  for config, checkpoint, own in ((TINY, calibrated, True), (calibrated, TINY, True), (calibrated, calibrated, False),
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


def losses_on(devices: int, model: str) -> list[float]:
  env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
  done = subprocess.run([sys.executable, str(WORKER), model], env=env, stdout=subprocess.PIPE, text=True, check=True,
                        timeout=300)
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", ["stand-in", pytest.param("codec", marks=pytest.mark.slow)])
def test_the_loss_curve_does_not_depend_on_the_number_of_devices(model):
  """tests/training/test_multiprocess.py has the same test for processes."""
  one = losses_on(1, model)
  assert one[-1] < 0.9 * one[0]
  np.testing.assert_allclose(losses_on(8, model), one, rtol=1e-4)
