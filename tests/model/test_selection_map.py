"""Tests of the selection map: its loss, its gradient, and files that use it."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables
from helpers.in_numpy import in_numpy

from configs import nano
from mlic_jax.coding import bitstream, portable_cdf
from mlic_jax.coding.bitstream import BitstreamError, PortabilityError
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.model import selection_map
from mlic_jax.model.mlic import build
from mlic_jax.training import parallel
from mlic_jax.training.config_schema import check_fields
from mlic_jax.training.losses import rd_loss
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import TrainState, make_train_step
from mlic_jax.training.warm_start import with_map

PLAIN = CodecConfig(N=4, M=8, num_slices=2, transforms="helpers.light_transforms", hyper_widths=(4, 4),
                    contexts=("channel",), channel_widths=(4,), entropy_widths=(4,), lrp_widths=(4,), num_rates=2)
MAPPED = dataclasses.replace(PLAIN, options=dict(selection_widths=(4,)))
ONE_SLICE = dataclasses.replace(MAPPED, num_slices=1, contexts=())


def variables_of(config: CodecConfig, bias: float) -> dict:
  """Random ones, with so much added to the log-odds of the maps, which are around INITIAL_LOG_ODDS without."""
  def shift(path, leaf):
    if not (selection_map.is_map_parameter(path) and path[-2].key == "conv1"):
      return leaf
    return leaf + np.float32(bias) if path[-1].key == "bias" else leaf * 30
  return jax.tree_util.tree_map_with_path(shift, random_variables(config))


CHANCE = selection_map.OPTIONS["selection_chance"]
TO_HALF = np.log(CHANCE / (1 - CHANCE)) - selection_map.INITIAL_LOG_ODDS


@pytest.fixture(scope="module")
def half():
  """Variables of MAPPED whose maps leave out about half of the elements."""
  return variables_of(MAPPED, TO_HALF)


@pytest.fixture(scope="module")
def half_of_one():
  """Variables of ONE_SLICE whose maps leave out about half of the elements."""
  return variables_of(ONE_SLICE, TO_HALF)


@pytest.fixture(scope="module")
def codec(tmp_path_factory, half):
  path = tmp_path_factory.mktemp("checkpoints") / "mapped"
  save_model(path, MAPPED, half)
  return Codec.load(path, allow_custom_modules=True)


def share_left_out(codec, photograph) -> float:
  return np.mean(codec.element_bits(photograph, 2)[0] == 0)


# --- the model ----------------------------------------------------------------------------

def test_a_model_without_a_map_has_none_of_its_parameters(half):
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(random_variables(PLAIN))]
  assert not any(map(selection_map.is_map_parameter, paths)) and not selection_map.has_map(PLAIN)
  of_maps = [path for path, _ in jax.tree_util.tree_leaves_with_path(half) if selection_map.is_map_parameter(path)]
  assert len(of_maps) == 2 * 2 * 2  # passes, layers, kernel and bias


def scanned(config: CodecConfig, variables: dict):
  """The result of the slices for random latents, whose log-odds lie within 20 of their mean."""
  y, hyper = (np.random.default_rng(0).normal(0, scale, (1, 8, 8, channels)).astype(np.float32)
              for scale, channels in ((3, config.M), (0.1, 2 * config.M)))
  # By NumPy, with which models with and without a map have the same bits where they have the same operations.
  return scan(config)(variables, hyper, y)


@functools.cache
def scan(config: CodecConfig):
  scan = lambda module, *latents: module.slices.scan(*latents)
  return in_numpy(lambda variables, *latents: build(config).apply(variables, *latents, method=scan))


def test_a_skipped_element_is_its_mean_and_costs_nothing(half_of_one):
  whole = scanned(dataclasses.replace(ONE_SLICE, options={}), {"params": without_maps(half_of_one["params"])})
  mapped, all_coded = scanned(ONE_SLICE, half_of_one), scanned(ONE_SLICE, variables_of(ONE_SLICE, 30.0))
  np.testing.assert_array_equal(all_coded.bits, whole.bits)
  np.testing.assert_array_equal(all_coded.y_hat, whole.y_hat)
  nothing = scanned(ONE_SLICE, variables_of(ONE_SLICE, -30.0))
  assert 0.2 < np.mean(mapped.bits == 0) < 0.8 and not nothing.bits.any() and np.any(nothing.y_hat)


def without_maps(params: dict) -> dict:
  steps = {name: part for name, part in params["slices"]["steps"].items() if not name.startswith(selection_map.PREFIX)}
  return params | {"slices": {"steps": steps}}


def test_the_map_alone_learns_by_its_loss_and_by_nothing_else(photograph, half_of_one):
  x, model = photograph[None, :64, :64] / np.float32(255), build(ONE_SLICE)

  def losses(params):
    out = model.apply({"params": params}, x, 2.0, rngs={"noise": jax.random.key(0)})
    return rd_loss(out, x, 0.01)[0], out.map_loss.mean()

  gradients = in_numpy(jax.jacrev(losses))(half_of_one["params"])
  for path, of_rd in jax.tree_util.tree_leaves_with_path(gradients[0]):
    of_map = gradients[1]
    for key in path:
      of_map = of_map[key.key]
    assert not np.any(of_rd if selection_map.is_map_parameter(path) else of_map), path
  norm = lambda tree: sum(float(np.abs(each).sum()) for each in jax.tree.leaves(tree))
  assert norm(gradients[0]) > 0 and norm(gradients[1]) > 0


@pytest.mark.parametrize("chance", [0.02, 0.5])
def test_an_element_is_coded_from_its_chance_to_lie_that_far_off_on(chance):
  """The loss is least where the log-odds are those of the share of far elements, less those of the chance."""
  config = dataclasses.replace(MAPPED, options=dict(selection_widths=(4,), selection_distance=0.3,
                                                    selection_chance=chance))
  residual = np.where(np.arange(100) < 10, np.float32(-0.4), np.float32(0.2))  # one in ten is far off
  loss = lambda keep: selection_map.cross_entropy(config, residual, jnp.full(100, keep)).mean()
  keep = np.linspace(-8, 8, 3201, dtype=np.float32)
  best = keep[in_numpy(jax.vmap(loss))(keep).argmin()]
  np.testing.assert_allclose(best, np.log(0.1 / 0.9) - np.log(chance / (1 - chance)), atol=0.01)
  assert (best > 0) == (0.1 > chance)


def test_a_larger_chance_leaves_more_out_with_the_same_parameters(half_of_one):
  left_out = []
  for chance in (0.001, CHANCE, 0.2):
    config = dataclasses.replace(ONE_SLICE, options=dict(selection_widths=(4,), selection_chance=chance))
    left_out.append(np.mean(scanned(config, half_of_one).bits == 0))
  assert left_out[0] < left_out[1] < left_out[2]


@pytest.mark.parametrize("options, wanted", [
    (dict(selection_widths=(0,)), "selection_widths=(0,); wanted widths of at least 1, or ()"),
    (dict(selection_widths=8), "selection_widths=8; wanted widths"),
    (dict(selection_chance=1.0), "selection_chance=1.0; wanted a number between 0 and 1"),
    (dict(selection_distance=-1), "selection_distance=-1; wanted a number above 0")])
def test_settings_that_no_map_can_have_are_refused_in_one_line(options, wanted):
  with pytest.raises(ValueError) as error:
    build(dataclasses.replace(PLAIN, options=options))
  assert wanted in str(error.value) and "\n" not in str(error.value)


# --- files --------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, dict(portable=False), dict(chunked=False)])
def test_a_file_that_goes_by_the_map_decodes_to_what_was_predicted(codec, photograph, options):
  blob, predicted = codec.with_options(**options).encode_with_reconstruction(photograph, 2)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  assert bitstream.parse(blob).uses_map and blob[5] & 0x10 and 0.2 < share_left_out(codec, photograph) < 0.8
  whole, of_all = codec.with_options(use_map=False, **options).encode_with_reconstruction(photograph, 2)
  np.testing.assert_array_equal(codec.decode(whole), of_all)
  assert not bitstream.parse(whole).uses_map and len(blob) < 0.9 * len(whole)
  assert np.abs(predicted.astype(int) - of_all).max() > 0


def test_what_the_map_leaves_out_costs_nothing_in_the_estimate_and_is_coded_as_estimated(codec, photograph):
  blob, predicted, bits = codec.encode_with_bits(photograph, 2)
  estimated, picture = codec.estimate(photograph, 2)
  np.testing.assert_array_equal(picture, predicted)
  assert bits() == pytest.approx(estimated, rel=1e-6)
  assert 0.98 * estimated <= 8 * len(blob) <= 1.02 * estimated + 8 * 70


def test_elements_of_small_scale_and_those_outside_the_map_may_both_be_left_out(codec, photograph):
  both = codec.with_options(skip=0.8)
  blob, predicted = both.encode_with_reconstruction(photograph, 2)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  apart = share_left_out(codec, photograph), share_left_out(both.with_options(use_map=False), photograph)
  assert max(apart) < share_left_out(both, photograph) <= sum(apart)


def off_by(size: float, keep):
  """Log-odds as another machine may have them."""
  return keep + np.float32(size) * np.random.default_rng(0).choice(np.float32([-1, 1]), keep.shape)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_map_with_other_last_bits_decodes_to_the_same_image(codec, photograph, monkeypatch, chunked):
  epsilon, kept = 2.0**-portable_cdf.epsilon_exponent(MAPPED) / portable_cdf.MAP_STEP, portable_cdf.coded_by_map
  blob, predicted = codec.with_options(chunked=chunked).encode_with_reconstruction(photograph, 2)
  with monkeypatch.context() as elsewhere:
    elsewhere.setattr(portable_cdf, "coded_by_map", lambda keep, grids: kept(off_by(epsilon / 2, keep), grids))
    np.testing.assert_array_equal(codec.decode(blob, slices=2), predicted)
  monkeypatch.setattr(portable_cdf, "coded_by_map", lambda keep, grids: kept(off_by(100 * epsilon, keep), grids))
  with pytest.raises(PortabilityError, match="slice [12] of 2 decodes to other symbols"):
    codec.decode(blob)


def test_a_map_lies_on_one_edge_whatever_grid_is_chosen():
  """Log-odds far from 0 are safe in all grids, so that nothing else decides about the choice."""
  far = np.where(np.arange(5000) % 3 > 0, np.float32(9), np.float32(-7)).reshape(1, 10, 10, 50)
  origin = portable_cdf.origin_of_this_machine(MAPPED)
  grids, kept = portable_cdf.choose_map(far, origin)
  assert not grids.choices.any() and np.array_equal(kept, far > 0)
  for shift in range(portable_cdf.GRIDS):
    every = grids._replace(choices=np.full_like(grids.choices, shift))
    np.testing.assert_array_equal(portable_cdf.coded_by_map(far, every), far > 0)
  near = far.copy()
  near[0, 0, 0, 0] = -portable_cdf.SHIFTS[0] / portable_cdf.MAP_STEP  # the edge of the first grid
  assert portable_cdf.choose_map(near, origin)[0].choices[0] == 1


def test_a_file_that_goes_by_a_map_that_the_model_does_not_have_is_refused_in_one_line(codec, photograph, tmp_path):
  save_model(tmp_path / "plain", PLAIN, random_variables(PLAIN))
  plain = Codec.load(tmp_path / "plain", allow_custom_modules=True)
  content = bitstream.parse(codec.encode(photograph))
  assert content.uses_map
  with pytest.raises(BitstreamError, match="it uses a selection map, but .* has none") as error:
    plain.decode(bitstream.write(content._replace(fingerprint=plain.fingerprint)))
  assert "\n" not in str(error.value)


# --- training -----------------------------------------------------------------------------

def test_a_map_is_added_to_the_parameters_of_a_model_without_one(half):
  params = random_variables(PLAIN)["params"]
  both = with_map(params, half["params"])
  jax.tree.map(np.testing.assert_array_equal, without_maps(both), params)
  own = lambda tree: {name: part for name, part in tree["slices"]["steps"].items()
                      if name.startswith(selection_map.PREFIX)}
  jax.tree.map(np.testing.assert_array_equal, own(both), own(half["params"]))
  jax.tree.map(np.testing.assert_array_equal, with_map(half["params"], params), half["params"])


def run_config(trained: str):
  c = nano.get_config()
  c.model.update(ONE_SLICE.to_dict())
  c.model.options = dict(ONE_SLICE.options)
  c.data_dir, c.trained, c.lmbdas, c.ema_decay = "photographs", trained, c.lmbdas[:2], 0.0
  c.muon_learning_rate, c.learning_rate, c.warmup_steps, c.num_steps = 1e-2, 1e-2, 1, 100
  return c


def test_a_training_of_the_map_leaves_all_else_as_it_is_to_the_bit(photograph, half_of_one):
  config = run_config("map")
  model, optimizer = build(check_fields(config)), make_optimizer(config)
  params = jax.tree.map(jnp.asarray, half_of_one["params"])
  state = TrainState(jnp.int32(0), params, optimizer.init(params), None, jax.random.PRNGKey(0))
  step, losses = parallel.pmap_over_batch(make_train_step(config, model, optimizer, None, "cpu")), []
  x, state = parallel.shard(photograph[None, :64, :64].repeat(2, 0)), parallel.replicate(state)
  for _ in range(8):
    state, metrics = step(state, x, None)
    losses.append(float(parallel.unreplicate(metrics)["map_loss"]))
  trained = parallel.unreplicate(state).params
  for path, before in jax.tree_util.tree_leaves_with_path(params):
    after = trained
    for key in path:
      after = after[key.key]
    assert np.array_equal(after, before) != selection_map.is_map_parameter(path), path
  assert losses[-1] < 0.9 * losses[0]


def test_a_map_cannot_be_trained_where_there_is_none_and_has_to_be_said_to_be():
  config = run_config("map")
  config.model.options = {}
  with pytest.raises(ConfigError, match="trained='map', but the model has no selection map; wanted selection_widths"):
    check_fields(config)
  config = run_config("all")
  del config.trained
  with pytest.raises(ConfigError, match="lacks the field 'trained' .for models with a selection map."):
    check_fields(config)
