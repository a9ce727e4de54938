"""Tests of the result of a training step, against an explicit objective and explicit optimizers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables
from helpers.exact_model import AUX_WEIGHT, ExactModel, gradient_by_hand
from helpers.linear_stub import StandIn

from configs import nano
from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import build
from mlic_jax.training.optimizer import learning_rate_schedule, make_optimizer
from mlic_jax.training.parallel import AXIS
from mlic_jax.training.pmap_programs import cache_key
from mlic_jax.training.step import create_state, make_eval_step, make_train_step, rate_weights

SINGLE_RATE = dict(N=4, M=2, num_slices=2, num_rates=0, contexts=())
VARIABLE_RATE = SINGLE_RATE | dict(num_rates=3)
LINEAR = dict(N=4, M=8, num_slices=2, num_rates=3, contexts=())  # of StandIn
_prepared = {}  # (initial state, step) of this process, neither of which a test changes


@pytest.fixture(name="config")
def config_of_the_exact_model():
  c = nano.get_config()
  c.optimizer, c.learning_rate, c.aux_learning_rate, c.warmup_steps = "adam", 1e-2, 5e-3, 0
  c.schedule, c.num_steps, c.final_learning_rate = "cosine", 1000, 0.0
  c.grad_clip, c.ema_decay, c.rate_weighting = 0.0, 0.0, 0.0
  c.model, c.lmbda, c.lmbdas, c.batch_size = SINGLE_RATE, 0.02, (0.01, 0.02, 0.08), 8
  return c


@pytest.fixture(name="drawing")
def config_of_steps_that_draw(config):
  """Rates and missing slices are drawn. Tests of this config share their programs."""
  config.model, config.partial_probability = dict(VARIABLE_RATE), 0.5
  config.rate_weighting, config.grad_clip, config.accumulate_steps = 0.45, 50.0, 1
  return config


@pytest.fixture(name="x")
def eight_images():
  return np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)


def prepared(config, model=ExactModel, teacher=None, teacher_variables=None, **options):
  """(state, step): step(state, x) -> (state, metrics (devices,)), where x is (devices, batch of each, H, W, 3).

  The devices are those of vmap, which a step cannot tell from others. Tests of equal configs share one compiled step.
  """
  model = model(CodecConfig(**config.model), **options)
  key = cache_key(config, model, teacher)
  if key is None:
    return _prepare(config, model, teacher, teacher_variables)
  if key not in _prepared:
    _prepared[key] = _prepare(config, model)
  return _prepared[key]


def _prepare(config, model, teacher=None, teacher_variables=None):
  optimizer = make_optimizer(config)
  train_step = make_train_step(config, model, optimizer, teacher, "cpu")

  @jax.jit
  def step(state, x):
    states, metrics = jax.vmap(lambda x: train_step(state, x, teacher_variables), axis_name=AXIS)(x)
    return jax.tree.map(lambda leaf: leaf[0], states), metrics
  return create_state(config, model, optimizer), step


def of_one_device(x):
  return x[None]


# --- what is drawn ---------------------------------------------------------------------

@pytest.mark.parametrize("noisy", [True, False], ids=["noise", "rates_and_slices"])
def test_the_same_seed_draws_something_else_in_each_step_and_the_same_in_the_same_step(drawing, x, noisy):
  state, step = prepared(drawing, noisy=noisy)
  drawn = lambda taken: (lambda m: (float(m["bpp_z"][0]), float(m["bpp_y"][0])))(
      step(state.replace(step=jnp.int32(taken)), of_one_device(x))[1])
  found = [drawn(taken) for taken in range(6)]
  assert len(set(found)) == 6 and all(len(set(of_metric)) >= 3 for of_metric in zip(*found))
  assert drawn(3) == found[3]
  drawing.seed = 1
  other, step = prepared(drawing, noisy=noisy)
  assert drawn(3) == found[3]  # by the key of the state alone
  assert not np.array_equal(other.rng, state.rng)


def test_no_random_key_is_used_twice(drawing, x):
  """Rates, noise and missing slices use different keys: JAX checks the key reuse of a whole step."""
  state, step = prepared(drawing, noisy=True)
  state = state.replace(rng=jax.random.wrap_key_data(state.rng))
  with jax.debug_key_reuse(True):
    step(state, of_one_device(x))


def test_every_sample_has_the_lambda_of_its_quality_and_all_are_drawn(config, x):
  config.model = dict(VARIABLE_RATE)
  state, step = prepared(config)
  rate = float(np.square(state.params["rate"]).mean())
  pairs = []
  for taken in range(40):
    _, metrics = step(state.replace(step=jnp.int32(taken)), of_one_device(x[:1]))
    of = lambda name: float(metrics[name][0])
    pairs.append((round(of("bpp_y") / rate), round((of("loss") - of("bpp")) / (255**2 * of("mse")), 4)))
  assert set(pairs) == {(1, 0.01), (2, 0.02), (3, 0.08)}
  assert min(pairs.count(pair) for pair in set(pairs)) >= 5


def test_the_noise_of_a_sample_goes_with_its_place_in_the_global_batch(drawing, x):
  """All devices have the same images, so they differ only by their noise, for any split of the batch."""
  state, step = prepared(drawing, noisy=True)
  same = np.repeat(x[:1], 8, axis=0)
  # Of two steps on one and on two devices the mean is the same; if all devices drew the same noise, it would not be.
  means = [float(step(state, same.reshape(count, -1, *x.shape[1:]))[1]["bpp_z"][0]) for count in (1, 2)]
  np.testing.assert_allclose(means, means[0], rtol=1e-5)
  assert abs(float(step(state, same[None, :1])[1]["bpp_z"][0]) - means[0]) > 1e-4


# --- what is minimized -----------------------------------------------------------------

def adam(gradients, rates, b1=0.9, b2=0.999, eps=1e-8):
  """Returns the sum of the steps of Kingma and Ba's Adam, with the constants of their paper."""
  m = v = moved = 0.0
  for t, (g, rate) in enumerate(zip(gradients, rates), start=1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    moved -= rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
  return moved


def steps_of(config, x, count=3):
  """[(state before, metrics)] of `count` steps, and the last state."""
  state, step = prepared(config)
  found = []
  for i in range(count):
    before = state
    state, metrics = step(state, of_one_device(np.roll(x, i, axis=1)))
    found.append((before, jax.tree.map(lambda leaf: float(leaf[0]), metrics), np.roll(x, i, axis=1) / 255.0))
  return found, state


@pytest.mark.parametrize("grad_clip", [0.0, 100.0, 1e6])
def test_three_steps_are_adams_on_the_gradient_of_the_objective(config, x, grad_clip):
  """Written out in NumPy: the gradient, the clipping of its norm without the quantiles, Adam, and Adam for these."""
  config.grad_clip = grad_clip
  found, last = steps_of(config, x)
  first, gradients, rates = found[0][0].params, [], []
  for state, metrics, images in found:
    gradient = gradient_by_hand(state.params, images, config.lmbda)
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    factor = min(1.0, grad_clip / norm) if grad_clip else 1.0
    gradients.append({name: factor * g for name, g in gradient.items()})
    rates.append(float(learning_rate_schedule(config)(state.step)))
    assert metrics["learning_rate"] == pytest.approx(rates[-1])
    assert metrics["aux_loss"] == pytest.approx(
        AUX_WEIGHT * np.abs(np.asarray(state.params["quantiles"]) - 2).sum(), rel=1e-5)
  assert grad_clip != 100.0 or norm > 200
  for name in ("kernel", "bias", "rate"):
    expected = first[name] + adam([g[name] for g in gradients], rates)
    np.testing.assert_allclose(last.params[name], expected, rtol=2e-5, atol=2e-6, err_msg=name)
  # The gradient of the quantiles is -30 each, whatever is clipped: Adam moves them by its rate.
  np.testing.assert_allclose(last.params["quantiles"] - first["quantiles"], 3 * config.aux_learning_rate, rtol=1e-4)


def test_the_auxiliary_loss_counts_once_and_for_the_quantiles_alone(config, x):
  (_, last) = steps_of(config, x, 1)
  of_aux = last.opt_state.inner_states["aux"].inner_state[0]
  np.testing.assert_allclose(of_aux.mu["quantiles"], -0.1 * AUX_WEIGHT, rtol=1e-5)  # (1 - 0.9) of a gradient of -30


def test_the_bits_of_the_slices_sum_to_those_of_y(config, x):
  state, step = prepared(config)
  _, metrics = step(state, of_one_device(x))
  slices = [float(metrics[f"bpp_slice_{k}"][0]) for k in range(2)]
  np.testing.assert_allclose(slices, np.square(state.params["rate"]) / 2, rtol=1e-5)  # a channel each
  np.testing.assert_allclose(metrics["bpp_y"], [sum(slices)], rtol=1e-5)


def test_the_average_follows_the_new_parameters_from_the_first_step_on(config, x):
  config.ema_decay = 0.15
  state, step = prepared(config)
  average = state.params
  jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)  # it starts there
  for i in range(4):
    state, _ = step(state, of_one_device(x))
    decay = min(0.15, (1 + i) / (10 + i))
    average = jax.tree.map(lambda a, p, decay=decay: decay * a + (1 - decay) * p, average, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema_params, average)
  assert state.eval_params is state.ema_params


@pytest.mark.parametrize("rates_of_teacher, weight", [(3, 0.3), (0, 0.3), (0, 1.0)])
def test_distillation_is_the_exact_loss_against_a_target_between_the_image_and_the_teacher(
    config, x, rates_of_teacher, weight):
  config.model, config.batch_size = dict(VARIABLE_RATE if rates_of_teacher else SINGLE_RATE), 1
  config.distillation_weight, config.learning_rate = weight, 1e-4

  class Teacher(ExactModel):
    """Its reconstruction is a constant gray: quality / 4, or 0.9."""
    def __call__(self, x, quality=None, *_):
      out = super().__call__(x)
      return out._replace(x_hat=jnp.zeros_like(x) + (0.9 if quality is None else quality / 4.0))

  teacher = Teacher(CodecConfig(**config.model))
  state, step = prepared(config, teacher=teacher, teacher_variables=dict(
      params=create_state(config, teacher, make_optimizer(config)).params))
  for taken in range(4):
    after, metrics = step(state.replace(step=jnp.int32(taken)), of_one_device(x[:1]))
    metrics = jax.tree.map(lambda leaf: float(leaf[0]), metrics)
    quality = round(metrics["bpp_y"] / float(np.square(state.params["rate"]).mean())) if rates_of_teacher else None
    gray, lmbda = (quality / 4, config.lmbdas[quality - 1]) if quality else (0.9, config.lmbda)
    images = x[:1] / 255.0
    x_hat = images @ np.float64(state.params["kernel"][0, 0]) + np.float64(state.params["bias"])
    target = (1 - weight) * images + weight * gray
    distortion = 255**2 * np.square(x_hat - target).mean()
    assert metrics["loss"] == pytest.approx(metrics["bpp"] + lmbda * distortion, rel=1e-4)
    assert metrics["mse"] == pytest.approx(np.square(x_hat - images).mean(), rel=1e-4)
    moved = images @ np.float64(after.params["kernel"][0, 0]) + np.float64(after.params["bias"])
    assert np.square(moved - target).mean() < np.square(x_hat - target).mean()  # towards the target


def test_rates_are_weighted_by_a_power_of_their_lambda_with_a_mean_of_one(config, x):
  lmbdas, exponent = np.array([0.01, 0.04, 0.16]), 0.5
  np.testing.assert_allclose(rate_weights(jnp.array(lmbdas), lmbdas, exponent), np.array([10, 5, 2.5]) * 3 / 17.5,
                             rtol=1e-5)
  config.model, config.lmbdas, config.rate_weighting = dict(VARIABLE_RATE), tuple(lmbdas), exponent
  state, step = prepared(config)
  _, metrics = step(state, of_one_device(x))
  of = lambda name: float(metrics[name][0])
  found = {}
  for weighting in (0.0, exponent):
    config.rate_weighting = weighting
    state, step = prepared(config)
    after, _ = step(state, of_one_device(x))
    found[weighting] = 10 * after.opt_state.inner_states["main"].inner_state[1][0].mu["bias"]  # the gradient
  key = jax.random.split(jax.random.fold_in(state.rng, state.step), 3)[0]
  drawn = lmbdas[np.asarray(jax.random.randint(key, (8,), 0, 3))]
  for weighting, gradient in found.items():
    weight = drawn**-weighting / np.mean(lmbdas**-weighting)
    by_hand = gradient_by_hand(state.params, x / 255.0, drawn, weight=weight)["bias"]
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4)
  assert of("loss") == pytest.approx(of("bpp") + 255**2 * float(np.mean(drawn * mse_of(state, x))), rel=1e-4)


def mse_of(state, x):
  images = x / 255.0
  x_hat = images @ np.float64(state.params["kernel"][0, 0]) + np.float64(state.params["bias"])
  return np.square(x_hat - images).mean((1, 2, 3))


@pytest.mark.parametrize("devices, accumulate_steps, noisy", [(2, 1, False), (1, 2, True), (2, 4, False)],
                         ids=["devices", "parts_with_noise", "devices_and_parts"])
def test_neither_devices_nor_parts_of_a_batch_change_a_step(drawing, x, devices, accumulate_steps, noisy):
  result = lambda accumulate, count: step_with(drawing, x.reshape(count, -1, *x.shape[1:]), accumulate, noisy)
  (state, metrics), (expected, expected_metrics) = result(accumulate_steps, devices), result(1, 1)
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected.params)


def step_with(config, x, accumulate_steps, noisy):
  config.accumulate_steps = accumulate_steps
  state, step = prepared(config, noisy=noisy)
  for _ in range(2):
    state, metrics = step(state, x)
  return state, jax.tree.map(lambda leaf: leaf[0], metrics)


@pytest.mark.parametrize("broken", ["bias", "rate", "quantiles"])
def test_a_loss_that_is_not_finite_leaves_everything_but_the_count(config, x, broken):
  """Also if only the auxiliary loss is not finite."""
  config.ema_decay = 0.9
  state, step = prepared(config)
  state, metrics = step(state, of_one_device(x))
  assert metrics["finite"][0] == 1
  bad = state.replace(params=dict(state.params, **{broken: jnp.full_like(state.params[broken], jnp.inf)}))
  after, metrics = step(bad, of_one_device(x))
  assert metrics["finite"][0] == 0 and after.step == 2
  jax.tree.map(np.testing.assert_array_equal, after.replace(step=0), bad.replace(step=0))


# --- the evaluation --------------------------------------------------------------------

def test_an_evaluation_measures_what_a_decoder_writes_clipped_and_in_8_bits(config, x):
  """Reconstructions outside [0, 1] have the error of clipped ones; images that pad a batch have no weight."""
  config.model = dict(VARIABLE_RATE)
  model = ExactModel(CodecConfig(**config.model))
  params = dict(create_state(config, model, make_optimizer(config)).params, kernel=jnp.eye(3).reshape(1, 1, 3, 3) * 3,
                bias=jnp.array([-1.2, 0.0, 0.4]))
  weight = np.array([1, 1, 1, 0, 1, 0, 1, 1], np.float32)
  evaluate = jax.jit(jax.vmap(make_eval_step(config, model), axis_name=AXIS, in_axes=(None, 0, 0, None, None, None)))
  sums, x_hat = evaluate(params, x.reshape(2, 4, *x.shape[1:]), weight.reshape(2, 4), 2.0, 0.02, np.zeros(3))
  images = x / 255.0
  raw = images @ np.float64(params["kernel"][0, 0]) + np.float64(params["bias"])
  levels = np.round(np.clip(raw, 0, 1) * 255)
  assert (raw > 1.1).any() and (raw < -0.1).any()
  assert np.mean(np.abs(np.asarray(x_hat, np.float64).reshape(levels.shape) - levels) > 0) < 1e-4  # rounding errors
  mse = np.square(levels / 255 - images).mean((1, 2, 3))
  rate = 2 * float(np.square(params["rate"]).mean())
  of = lambda name: np.asarray(sums[name])
  np.testing.assert_allclose(of("mse"), (weight * mse).sum(), rtol=1e-4)
  np.testing.assert_allclose(of("psnr"), (weight * -10 * np.log10(mse)).sum(), rtol=1e-4)
  np.testing.assert_allclose(of("bpp"), rate * weight.sum(), rtol=1e-5)
  np.testing.assert_allclose(of("loss"), (weight * (rate + 0.02 * 255**2 * mse)).sum(), rtol=1e-4)
  np.testing.assert_allclose(of("weight"), weight.sum())


def test_an_evaluation_rounds_and_a_training_adds_noise(config, x):
  config.model, config.partial_probability = dict(LINEAR), 0.5
  model = StandIn(CodecConfig(**config.model))
  params = prepared(config, StandIn)[0].params
  evaluate = jax.jit(jax.vmap(make_eval_step(config, model), axis_name=AXIS, in_axes=(None, 0, 0, None, None, None)))
  sums, _ = evaluate(params, x[None, :2], np.ones((1, 2), np.float32), 1.0, 0.02, np.zeros(3))
  out = jax.jit(model.apply)({"params": params}, x[:2] / np.float32(255), 1.0)
  bpp = (np.asarray(out.y_bits).sum() + np.asarray(out.z_bits).sum()) / (64 * 64)
  np.testing.assert_allclose(sums["bpp"], bpp, rtol=1e-4)


def test_an_evaluation_on_tpus_has_the_same_metrics(config, x):
  codec = CodecConfig(N=8, M=16, num_slices=2, transforms="helpers.light_transforms", hyper_widths=(8, 8),
                      entropy_widths=(), lrp_widths=(), contexts=("global_intra_linear",))
  model, params = build(codec), random_variables(codec)["params"]

  def evaluated(platform):
    step = jax.vmap(make_eval_step(config, model, platform), axis_name=AXIS, in_axes=(None, 0, 0, None, None, None))
    return jax.jit(step)(params, x[None, :1], np.ones((1, 1), np.float32), None, 0.02, np.zeros(3))[0]

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), evaluated("tpu"), evaluated(None))
