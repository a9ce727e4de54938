"""Tests of optimizers and schedules, against optax and explicit formulas."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from configs import mlic_plus_plus, nano
from mlic_jax.training.clipping import (
  clip_by_norm,
  global_norm,
  norms_array_by_array,
  norms_in_one_vector,
  norms_of_sums,
)
from mlic_jax.training.muon import (
  COEFFICIENTS,
  REPETITIONS,
  orthogonalize,
  orthogonalize_by_side,
  scale_by_muon,
  steps_on_cpu,
)
from mlic_jax.training.optimizer import SCHEDULES, learning_rate_schedule, make_optimizer
from mlic_jax.training.parallel import AXIS, sum_over_devices
from mlic_jax.training.soap import scale_by_soap


@pytest.fixture(name="config")
def config_of_an_optimizer():
  c = nano.get_config()
  c.optimizer, c.learning_rate, c.muon_learning_rate, c.aux_learning_rate = "adam", 1e-2, 3e-2, 5e-3
  c.schedule, c.num_steps, c.final_learning_rate, c.warmup_steps, c.grad_clip = "cosine", 1000, 0.0, 0, 0.0
  return c


# --- schedules -------------------------------------------------------------------------

def rate_by_hand(config, step):
  """Returns the learning rate of the step after `step` steps."""
  peak, warmup = config.learning_rate, config.warmup_steps
  if step < warmup:  # from peak / warmup on, in a straight line to peak
    return peak / warmup + (peak - peak / warmup) * step / warmup
  if config.schedule == "cosine":
    share = min(1.0, (step - warmup) / (config.num_steps - warmup))
    return config.final_learning_rate + (peak - config.final_learning_rate) * (1 + np.cos(np.pi * share)) / 2
  if config.schedule == "wsd":
    if not config.decay_start or step < config.decay_start:
      return peak
    share = min(1.0, (step - config.decay_start) / (config.num_steps - config.decay_start))
    return peak + (config.final_learning_rate - peak) * share
  return peak * np.prod([factor for at, factor in zip(config.decay_steps, config.decay_factors) if step >= at])


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("schedule, fields", [
    ("cosine", {}), ("wsd", dict(decay_start=0)), ("wsd", dict(decay_start=30)),
    ("step", dict(decay_steps=(20, 35), decay_factors=(0.5, 0.1)))])
def test_a_schedule_has_its_rate_at_every_step(config, warmup, schedule, fields):
  config.update(dict(schedule=schedule, num_steps=40, warmup_steps=warmup, final_learning_rate=1e-4, **fields))
  rate, muon_rate = learning_rate_schedule(config), learning_rate_schedule(config, peak=3e-2)
  for step in range(45):
    assert float(rate(step)) == pytest.approx(rate_by_hand(config, step), rel=1e-5), step
    assert float(muon_rate(step)) == pytest.approx(3 * rate_by_hand(config, step), rel=1e-5), step


def test_every_schedule_is_in_the_test_above():
  assert set(SCHEDULES) == {"cosine", "wsd", "step"}


def test_the_papers_rate_falls_to_three_and_one_tenth_after_their_steps():
  rate = learning_rate_schedule(mlic_plus_plus.get_config())
  steps = 0, 8_999, 9_000, 1_799_999, 1_800_000, 1_899_999, 1_900_000, 2_000_000
  expected = 1e-4 / 9000, 1e-4, 1e-4, 1e-4, 3e-5, 3e-5, 0.99e-5, 0.99e-5
  assert [float(rate(step)) for step in steps] == pytest.approx(expected, rel=2e-4)


def test_the_learning_rate_warms_up_and_decays(config):
  config.update(dict(num_steps=100, warmup_steps=10, learning_rate=1e-3, final_learning_rate=1e-5))
  cosine = learning_rate_schedule(config)
  assert cosine(0) == pytest.approx(1e-4) and cosine(10) == pytest.approx(1e-3) and cosine(100) == pytest.approx(1e-5)
  config.schedule, config.decay_steps, config.decay_factors = "step", (50, 80), (0.5, 0.1)
  step = learning_rate_schedule(config)
  assert [float(step(i)) for i in (10, 49, 51, 81)] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-5])


def test_a_run_stays_at_its_rate_until_its_end_is_decided_and_then_goes_down(config):
  config.update(dict(num_steps=100, warmup_steps=10, learning_rate=1e-3, final_learning_rate=0.0, schedule="wsd"))
  config.decay_start = 0
  assert [float(learning_rate_schedule(config)(i)) for i in (10, 99, 10**6)] == pytest.approx([1e-3] * 3)
  config.decay_start = 80
  ending = learning_rate_schedule(config, peak=2e-3)
  assert [float(ending(i)) for i in (0, 10, 80, 90, 100)] == pytest.approx([2e-4, 2e-3, 2e-3, 1e-3, 0.0])


# --- what a gradient becomes -----------------------------------------------------------

@pytest.mark.parametrize("shapes", [[(3, 3, 48, 32), (7, 20, 40), (48,), ()], [(5, 7), (4097,), (64, 65)]])
def test_the_norm_of_a_gradient_and_what_it_is_clipped_to_are_those_of_optax(shapes):
  rng = np.random.default_rng(0)
  tree = [np.float32(rng.normal(size=shape)) for shape in shapes]
  norm = float(jax.jit(optax.global_norm)(tree))
  for platform in None, "cpu", "gpu", "tpu":
    assert float(jax.jit(partial(global_norm, platform=platform))(tree)) == pytest.approx(norm, rel=2e-6)
  of_optax = jax.jit(lambda tree, most: optax.clip_by_global_norm(most).update(tree, optax.EmptyState())[0])
  clip = jax.jit(lambda tree, most, **known: clip_by_norm(most).update(tree, optax.EmptyState(), **known)[0])
  for max_norm in (0.5 * norm, 2 * norm):
    expected = of_optax(tree, max_norm)
    for known in (dict(norm=norm), {}):
      clipped = clip(tree, max_norm, **known)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6), clipped, expected)
  bad = [*tree, jnp.asarray([1.0, np.nan])]
  assert np.isnan(global_norm(bad)) and np.isinf(global_norm([*tree, jnp.full(3, np.inf)]))


def test_norms_in_one_vector_are_those_array_by_array_and_gradients_stay_as_they_are():
  rng = np.random.default_rng(0)
  draw = lambda *shapes: {i: np.float32(rng.normal(size=shape)) for i, shape in enumerate(shapes)}
  main, aux = draw((3, 3, 8, 5), (5,), ()), draw((4, 3))
  expected, norms = jax.jit(norms_array_by_array)(main, aux)
  found, found_norms = jax.jit(norms_in_one_vector)(main, aux)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  np.testing.assert_allclose(found_norms, norms, rtol=2e-6)
  halved = partial(norms_in_one_vector, mean=lambda vector: vector / 2)
  found, found_norms = jax.jit(halved)(main, aux)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b / 2), found, expected)
  np.testing.assert_allclose(found_norms, np.array(norms) / 2, rtol=2e-6)


def test_norms_of_sums_over_devices_are_those_of_means():
  rng = np.random.default_rng(0)
  draw = lambda *shapes: [np.float32(rng.normal(size=(3, *shape))) for shape in shapes]
  main, aux = draw((3, 3, 40, 50), (5,), ()), draw((4, 3))
  run = jax.jit(jax.vmap(partial(norms_of_sums, sum_over_devices, 3), axis_name=AXIS, out_axes=None))
  found, norms = run(main, aux)
  means = jax.tree.map(lambda x: x.mean(0), (main, aux))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, means)
  of_optax = jax.jit(lambda means: [optax.global_norm(mean) for mean in means])(means)
  np.testing.assert_allclose(norms, of_optax, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 24, 72), (1, 24, 30)])
def test_the_step_of_muon_is_the_same_by_way_of_the_gram_matrix(shape):
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  expected = optax.contrib._muon.orthogonalize_via_newton_schulz(
      x, jnp.array(COEFFICIENTS), REPETITIONS, dimension_numbers=optax.contrib.MuonDimensionNumbers(1, 2))
  alone = jax.jit(orthogonalize)
  np.testing.assert_allclose(alone(x), expected, atol=1e-5)
  other = jnp.asarray(np.random.default_rng(1).normal(size=(3, 24, 40)), jnp.float32)
  matrices = [x, other, x[:, :8]]
  on_cpu = [step / each.shape[2]**0.5 for step, each in zip(jax.jit(steps_on_cpu)(matrices, 1.0), matrices)]
  for orthogonal in jax.jit(orthogonalize_by_side)(matrices), on_cpu:
    for found, each in zip(orthogonal, matrices):
      np.testing.assert_allclose(found, alone(each), atol=1e-5)


def test_matrices_of_one_side_are_iterated_together_but_on_cpu_nearly_square_ones():
  def count(name, function, *sizes):
    return str(jax.make_jaxpr(function)([jnp.ones(size) for size in sizes])).count(name)

  loops = partial(count, "scan[", orthogonalize_by_side)
  products = partial(count, "dot_general[", partial(steps_on_cpu, rms=1.0))
  assert loops((2, 8, 30), (1, 8, 9), (4, 8, 8)) == 1 and loops((2, 8, 30), (1, 9, 9)) == 2
  of_long, of_square = products((2, 8, 30)), products((4, 8, 8))
  assert products((2, 8, 30), (1, 8, 12)) == products((2, 8, 30), (1, 12, 8)) == of_long + 3  # to and from the factor
  assert products((2, 8, 30), (4, 8, 8)) == of_long + of_square


def test_kernels_of_every_shape_have_the_same_steps_on_cpu_as_elsewhere():
  """Also with channels that have no gradient, and with tiny gradients. Steps are some 0.2, and the rounding errors of
  both ways, against float64, up to 3e-4."""
  rng = np.random.default_rng(0)
  shapes = [(3, 3, 8, 12), (2, 3, 3, 4, 12), (1, 1, 12, 30), (1, 1, 30, 12), (2, 1, 1, 12, 30), (1, 1, 12, 12),
            (3, 1, 1, 12, 12), (1, 1, 10, 12), (1, 1, 12, 10), (1, 1, 4, 4)]
  kernels = [rng.normal(size=shape).astype(np.float32) * scale for shape in shapes for scale in (1, 1e-5)]
  dead = [kernel.copy() for kernel in kernels]
  for kernel in dead:
    kernel[..., 3:, :] = 0  # so the live side is that of outputs in some, of inputs in others
    kernel[..., 7:] = 0

  def steps(platform):
    muon = scale_by_muon(platform=platform)
    return jax.jit(lambda kernels: muon.update(kernels, muon.init(kernels))[0])([*kernels, *dead, 0 * kernels[0]])

  for found, expected in zip(steps("cpu"), steps(None)):
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_small_gradient_makes_a_step_of_the_learning_rate_too(config):
  """Adam's epsilon is far below any gradient: here of 1e-5."""
  optimizer = make_optimizer(config)
  params = dict(kernel=jnp.zeros((1, 1, 3, 3)), bias=jnp.zeros(3), quantiles=jnp.zeros((1, 3)))
  tiny = jax.tree.map(lambda p: jnp.full(p.shape, 1e-5), params)
  updates, _ = jax.jit(optimizer.update)(tiny, optimizer.init(params), params)
  np.testing.assert_allclose(updates["bias"], -config.learning_rate, rtol=2e-3)
  np.testing.assert_allclose(updates["quantiles"], -config.aux_learning_rate, rtol=2e-3)


def optax_step(name):
  """The update of a kernel (taken as a matrix) and of a bias, as in optax.contrib and optax, without learning rates."""
  if name == "muon":
    shapes = optax.contrib.MuonDimensionNumbers(0, 1)
    muon = optax.contrib.scale_by_muon(ns_coeffs=COEFFICIENTS, weight_dimension_numbers=lambda params: jax.tree.map(
        lambda _: shapes, params))
    return muon, lambda rows, columns: 0.2 * max(rows, columns)**0.5, optax.scale_by_adam(nesterov=True)
  return optax.scale_by_adam(), lambda *_: 1.0, optax.scale_by_adam()


@pytest.mark.parametrize("name, platform", [("adam", None), ("muon", None), ("muon", "cpu"), ("muon", "gpu")])
def test_five_updates_are_those_of_optax(config, name, platform):
  config.optimizer, config.muon_learning_rate, config.warmup_steps = name, 3e-2, 2
  optimizer, rng = make_optimizer(config, platform), np.random.default_rng(0)
  params = dict(kernel=jnp.zeros((3, 3, 4, 5)), bias=jnp.zeros(5))
  of_kernel, scale, of_bias = optax_step(name)
  state = optimizer.init(params)
  matrix = jnp.zeros((36, 5))
  kernel_state, bias_state = of_kernel.init(dict(kernel=matrix)), of_bias.init(params["bias"])
  peak = dict(adam=config.learning_rate, muon=config.muon_learning_rate)[name]
  update, update_kernel, update_bias = map(jax.jit, (optimizer.update, of_kernel.update, of_bias.update))
  for i in range(5):
    gradient = dict(kernel=jnp.float32(rng.normal(size=(3, 3, 4, 5))), bias=jnp.float32(rng.normal(size=5)))
    updates, state = update(gradient, state, params)
    step, kernel_state = update_kernel(dict(kernel=gradient["kernel"].reshape(36, 5)), kernel_state,
                                       dict(kernel=matrix))
    bias_step, bias_state = update_bias(gradient["bias"], bias_state)
    rate = float(learning_rate_schedule(config)(i)) / config.learning_rate
    np.testing.assert_allclose(updates["kernel"].reshape(36, 5), -rate * peak * scale(36, 5) * step["kernel"],
                               rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(updates["bias"], -rate * config.learning_rate * bias_step, rtol=1e-4)


def test_soap_is_for_kernels_and_adam_for_the_rest_both_at_the_learning_rate(config):
  config.optimizer, rng = "soap", np.random.default_rng(0)
  optimizer, soap, adam = make_optimizer(config), scale_by_soap(), optax.scale_by_adam()
  params = dict(kernel=jnp.zeros((3, 3, 4, 5)), bias=jnp.zeros(5), depthwise=dict(kernel=jnp.zeros((3, 3, 1, 5))))
  state, kernel_state = optimizer.init(params), soap.init(dict(kernel=params["kernel"]))
  others = lambda tree: {name: value for name, value in tree.items() if name != "kernel"}
  adam_state = adam.init(others(params))
  update, update_kernel, update_others = map(jax.jit, (optimizer.update, soap.update, adam.update))
  for i in range(3):
    gradient = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
    updates, state = update(gradient, state, params)
    step, kernel_state = update_kernel(dict(kernel=gradient["kernel"]), kernel_state)
    rest, adam_state = update_others(others(gradient), adam_state)
    rate = float(learning_rate_schedule(config)(i))
    expected = jax.tree.map(lambda u, rate=rate: -rate * u, step | rest)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), updates, expected)


def test_muon_gives_every_convolution_of_every_slice_an_orthogonal_step(config):
  config.update(dict(optimizer="muon", learning_rate=1e-3, muon_learning_rate=2e-3, warmup_steps=1))
  rng = np.random.default_rng(0)
  shapes = dict(conv=dict(kernel=(2, 3, 3, 8, 24), bias=(2, 24)), lying=dict(kernel=(1, 1, 24, 72)),  # of one size
                depthwise=dict(kernel=(3, 3, 1, 24)))
  params = jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes,
                        is_leaf=lambda x: isinstance(x, tuple))
  optimizer = make_optimizer(config)
  updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
  matrices_of = lambda tree: [*np.reshape(tree["conv"]["kernel"], (2, 72, 24)), tree["lying"]["kernel"][0, 0]]
  for step, gradient in zip(matrices_of(updates), matrices_of(params)):
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    along = -u.T @ step @ vt.T / (0.2 * 2e-3 * 72**0.5)  # the singular values of the gradient, each now near 1
    np.testing.assert_allclose(along, np.diag(np.diag(along)), atol=1e-3)
    assert 0.6 < np.diag(along).min() and np.diag(along).max() < 1.3
  for rest in (updates["conv"]["bias"], updates["depthwise"]["kernel"]):  # Adam's first step is a sign
    assert 1e-3 <= np.abs(rest).min() and np.abs(rest).max() < 1.001 * np.abs(rest).min() < 2e-3


@pytest.mark.parametrize("platform", [None, "cpu"])
def test_channels_that_a_slice_cannot_see_yet_do_not_change_its_step(platform):
  """Their rows of a stacked kernel have no gradient. The live part of every slice has steps of one size, those of a
  kernel with these rows alone; before, the first slice took steps of 0.57 and the last of 0.21 (MLIC++)."""
  slices, channels, outputs = 4, 8, 48
  gradient = np.random.default_rng(0).normal(size=(slices, 3, 3, slices * channels, outputs)).astype(np.float32)
  for k in range(slices):
    gradient[k, :, :, k * channels:] = 0
  muon = scale_by_muon(platform=platform)
  step = jax.jit(lambda kernel: muon.update(dict(kernel=kernel), muon.init(dict(kernel=kernel)))[0]["kernel"])
  stacked = np.asarray(step(gradient))
  assert not stacked[0].any()  # the first slice sees no other
  for k in range(1, slices):
    live, dead = np.split(stacked[k], [k * channels], axis=2)
    np.testing.assert_allclose(live, step(gradient[k, :, :, :k * channels]), atol=2e-4)
    assert 0.16 < np.sqrt(np.mean(live**2)) < 0.22 and not dead.any()


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_a_gradient_longer_than_grad_clip_counts_as_one_of_that_length(config, name):
  rng = np.random.default_rng(0)
  normal = lambda: dict(conv=dict(kernel=rng.normal(size=(3, 3, 2, 4)), bias=rng.normal(size=4)))
  scaled = lambda tree, length: jax.tree.map(lambda g: jnp.float32(g / optax.global_norm(tree) * length), tree)
  params, first, second = normal(), normal(), scaled(normal(), 0.5)

  def update_with(grad_clip, length):  # after two gradients, as the first step of Adam is a sign
    config.optimizer, config.grad_clip = name, grad_clip
    optimizer = make_optimizer(config)
    update = jax.jit(optimizer.update)
    _, state = update(scaled(first, length), optimizer.init(params), params)
    return np.concatenate([u.ravel() for u in jax.tree.leaves(update(second, state, params)[0])])

  np.testing.assert_allclose(update_with(2.0, 100.0), update_with(2.0, 2.0), rtol=1e-3, atol=1e-9)
  assert np.abs(update_with(0.0, 100.0) / update_with(0.0, 2.0) - 1).max() > 0.1
