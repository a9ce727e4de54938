"""Refined latents: what is gained, what never gets worse, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables

from mlic_jax.coding.codec import Codec
from mlic_jax.coding.model_directory import Model, save_model
from mlic_jax.coding.rate_control import encode_to_bytes
from mlic_jax.coding.refinement import Budget, RefineError, Schedule, objective, refine, refined
from mlic_jax.config import CodecConfig
from mlic_jax.metrics import mse
from mlic_jax.model.quantisers import ROUNDING
from mlic_jax.model.relaxations import ADVANTAGES, annealed

SMALL = CodecConfig(N=4, M=8, num_slices=2, widths=(4, 4, 4), hyper_widths=(4, 4), contexts=("channel",),
                    channel_widths=(4,), entropy_widths=(4,), lrp_widths=(4,), num_rates=2)
TRAINING = {"config": {"distortion": "mse"},
            "eval": [{"quality": 1, "lmbda": 0.002}, {"quality": 2, "lmbda": 0.05}]}


@pytest.fixture(scope="module", name="codec")
def small_codec(tmp_path_factory):
  path = tmp_path_factory.mktemp("checkpoints") / "small"
  save_model(path, SMALL, random_variables(SMALL), training=TRAINING)
  return Codec.load(path)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_a_cold_relaxation_chooses_the_nearer_integer_and_a_hot_one_does_not_always(kind):
  v = jnp.linspace(-3, 3, 1000) + 0.001
  clear = np.abs(v - jnp.round(v)) < 0.45
  cold, _ = annealed(kind, 0.01).quantise(v, jnp.zeros(v.shape))
  np.testing.assert_allclose(cold[clear], jnp.round(v)[clear], atol=1e-3)
  hot, counted = annealed(kind, 0.5).quantise(v, jax.random.logistic(jax.random.key(0), v.shape))
  assert (jnp.abs(hot - v) <= 1).all() and (jnp.round(hot) != jnp.round(v)).mean() > 0.05
  np.testing.assert_array_equal(hot, counted)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_the_gradient_of_a_relaxation_is_finite_and_never_negative(kind):
  v = jnp.concatenate([jnp.linspace(-2, 2, 401), jnp.array([0.0, 1.0, -1.0])])
  slope = jax.vmap(jax.grad(lambda v: annealed(kind, 0.3).quantise(v, 0.1)[0]))(v)
  assert np.isfinite(slope).all() and (slope >= 0).all() and slope.max() > 0


def test_refining_finds_integers_that_plain_rounding_misses():
  mixture, target = jnp.array([[1.0, 0.6], [0.6, 1.0]]), jnp.array([0.85, 0.7])  # where rounding each is not the best

  def loss(y, z, quantiser, key):
    received, _ = quantiser.quantise(y, quantiser.draw(key, y.shape) if quantiser.draw else None)
    return jnp.square(mixture @ received - mixture @ target * 1.35).sum() + 0 * z.sum()

  y, z = jnp.array([0.45, 0.45]), jnp.zeros(1)
  best, _ = refine((y, z), loss, jax.random.key(0), Schedule(steps=60, learning_rate=0.05))
  assert loss(best, z, ROUNDING, None) < loss(y, z, ROUNDING, None)


def test_a_refined_file_decodes_as_any_other_and_its_loss_is_lower(codec, photograph):
  distortion, lmbda = objective(codec, 2)
  true_loss = lambda blob: 8 * len(blob) / photograph[..., 0].size + lmbda * mse(photograph, codec.decode(blob))
  plain = codec.encode(photograph, 2)
  blob, predicted = codec.encode_with_reconstruction(photograph, 2, refine=20)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  assert distortion == "mse" and true_loss(blob) < true_loss(plain)


def test_refining_that_makes_it_worse_gives_the_plain_file(codec, photograph):
  wild = Schedule(learning_rate=50.0)
  latents = refined(codec, photograph, 1, Budget(3), schedule=wild)
  assert codec.encode_latents(latents) == codec.encode(photograph, 1)


def test_lambda_is_that_of_the_quality_and_geometric_between_two_rates(codec):
  assert objective(codec, 1) == ("mse", pytest.approx(0.002)) and objective(codec, 2)[1] == pytest.approx(0.05)
  assert objective(codec, 1.5)[1] == pytest.approx(0.01) and objective(codec, 1.5, 0.7) == ("mse", 0.7)


def test_a_target_is_aimed_at_after_refining_and_never_passed(codec, photograph):
  target = len(codec.encode(photograph, 1.5))
  reached = encode_to_bytes([codec], photograph, target, refine=5)
  assert 0.9 * target < len(reached.blob) <= target


@pytest.mark.parametrize("text", ["-3", "0", "0s", "soon", "5m", "1.5"])
def test_a_budget_that_is_none_is_refused_in_one_line(text):
  with pytest.raises(RefineError, match="wanted a number of steps from 1 on, as 100, or a time, as 50s") as error:
    Budget.parse(text)
  assert "\n" not in str(error.value)


def test_a_time_too_short_for_one_step_is_refused_with_what_one_takes(codec, photograph):
  with pytest.raises(RefineError, match=r"refine=1e-06s; a step takes .* s here"):
    refined(codec, photograph, 1, Budget(None, 1e-6))


def test_a_model_that_does_not_say_its_lambda_wants_one(codec, photograph):
  nameless = Codec(Model("old", SMALL, codec.variables, codec._table, b"12345678", None))
  with pytest.raises(RefineError, match="old: its model directory does not say for which lmbda it was trained"):
    nameless.encode(photograph, 1, refine=3)
  assert objective(nameless, 1, 0.01) == ("mse", 0.01)
