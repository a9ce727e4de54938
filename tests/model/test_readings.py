"""The settings by which parts read the papers as other implementations do; the recorded arrays of CompressAI
(tests/interop/test_compressai_parity.py) hold all of them together."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import random_variables
from helpers.in_numpy import in_numpy

from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.config import CodecConfig
from mlic_jax.model import contexts
from mlic_jax.model.attention import softmax_attention
from mlic_jax.model.channel_reweighting import Reweighting
from mlic_jax.model.checkerboard import anchor_mask, pack
from mlic_jax.model.contexts import global_inter_linear
from mlic_jax.model.lazy_params import without_initializers
from mlic_jax.model.mlic import build
from mlic_jax.model.param_shapes import step_param_shapes
from mlic_jax.model.rope import OutputRotary

SMALL = CodecConfig(N=8, M=24, num_slices=3, transforms="helpers.light_transforms", hyper_widths=(8, 8),
                    channel_widths=(8, 8), entropy_widths=(8,), lrp_widths=(8,), window_size=3)
MAPPED = dataclasses.replace(SMALL, num_rates=2, contexts=("local_attention", "channel"), options=dict(
    selection_widths=(8,), selection_spatial=True, selection_chance=0.5, selection_distance=0.3, selection_lrp=False))


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs_of(config, k, h=4, w=6, traced=False):
  """What a context of slice k sees; `traced` as under jax.jit, where k is not known."""
  cs = config.slice_channels
  live = np.arange(config.M) < k * cs
  decoded = normal(1, h, w, config.M) * live
  anchor = normal(1, h, w, cs, seed=1) * np.asarray(anchor_mask(h, w))[..., None]
  previous = decoded[..., max(k - 1, 0) * cs:][..., :cs]
  k, live = (np.int32(k), live) if traced else (k, live)
  return contexts.ContextInputs(k, normal(1, h, w, 2 * config.M, seed=2), decoded, live, previous, anchor)


def variables_of(context, given):
  """Random parameters of a context, which no program has to draw."""
  with_known_slice = lambda given: given._replace(k=1, live=np.arange(SMALL.M) < SMALL.slice_channels, for_tpu=False)
  with without_initializers():
    return filled(jax.eval_shape(lambda given: context.init(jax.random.key(0), with_known_slice(given)), given))


def filled(shapes):
  """Arrays of the shapes, with random numbers that keep activations of order 1."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda each: np.float32(
      rng.normal(size=each.shape) / np.sqrt(max(np.prod(each.shape[:-1]), 4))), shapes)


@functools.cache
def run_known(context, k):
  live = np.arange(context.config.M) < k * context.config.slice_channels
  return in_numpy(lambda variables, hyper, decoded, previous, anchor: context.apply(
      variables, contexts.ContextInputs(k, hyper, decoded, live, previous, anchor)))


def run(context, variables, given):
  """What a context returns if the index of the slice is known, which is traced once for a slice."""
  return run_known(context, given.k)(variables, given.hyper, given.decoded, given.previous, given.anchor)


# --- heads between slices -----------------------------------------------------------------

@pytest.mark.parametrize("slice_channels, wanted", [(32, [1, 2, 3, 4]), (16, [1, 1, 1, 2]), (64, [2, 4, 6, 8]),
                                                    (48, [1, 3, 4, 6])])
def test_heads_have_so_many_channels_as_nearly_as_they_are_equal(slice_channels, wanted):
  config = CodecConfig(M=5 * slice_channels, num_slices=5, options=dict(head_channels=32))
  assert [global_inter_linear.num_heads(config, count) for count in range(1, 5)] == wanted


# With 4 channels a head, those of all slices have one width; with 16, those of each slice have a width of their own.
@pytest.mark.parametrize("head_channels", [4, 16])
@pytest.mark.parametrize("name", ["global_inter_linear", "global_inter_softmax"])
@pytest.mark.parametrize("rotary", [False, True])
def test_a_slice_whose_index_is_traced_has_the_heads_of_that_slice(head_channels, name, rotary):
  config = dataclasses.replace(SMALL, options=dict(head_channels=head_channels, rotary=rotary))
  context = contexts.make_context(name, config)
  variables = variables_of(context, inputs_of(config, 2))
  run_traced = in_numpy(lambda given: context.apply(variables, given._replace(for_tpu=False)))  # which is never traced
  for k in 1, 2:
    traced, known = run_traced(inputs_of(config, k, traced=True)), run(context, variables, inputs_of(config, k))
    np.testing.assert_allclose(traced, known, atol=1e-5)
  by_slice = contexts.make_context(name, dataclasses.replace(config, options=dict(rotary=rotary)))
  given = inputs_of(config, 2)
  assert not np.allclose(run(by_slice, variables, given), run(context, variables, given), atol=1e-3)


# --- attention within a slice -------------------------------------------------------------

def test_a_query_that_sees_no_key_takes_the_mean_of_all_by_a_setting():
  q, k, v = normal(1, 6, 4), normal(1, 5, 4, seed=1), normal(1, 5, 4, seed=2)
  seen = jnp.asarray(np.arange(6)[:, None] > np.arange(5))  # the first query sees nothing
  averaged, plain = (in_numpy(functools.partial(
      softmax_attention, num_heads=2, visible=lambda queries: seen[queries], average_unseen=average))(q, k, v)
      for average in (True, False))
  np.testing.assert_allclose(averaged[:, 0], v.mean(1), atol=1e-6)
  np.testing.assert_array_equal(plain[:, 0], 0)
  np.testing.assert_allclose(averaged[:, 1:], plain[:, 1:], atol=1e-6)


@pytest.mark.parametrize("hidden", [1, 5])
def test_the_window_that_is_hidden_may_have_a_side_of_its_own(hidden):
  """As if window_size, which nothing else here reads, had that size."""
  context = lambda **fields: contexts.make_context("global_intra_softmax", dataclasses.replace(SMALL, **fields))
  given, by_setting, by_window = inputs_of(SMALL, 1, h=6, w=8), context(options=dict(hidden_window=hidden)), context(
      window_size=hidden) if hidden > 1 else None
  variables = variables_of(by_setting, given)
  out = run(by_setting, variables, given)
  assert not np.allclose(out, run(context(), variables, given), atol=1e-3)
  if by_window is not None:
    np.testing.assert_array_equal(out, run(by_window, variables, given))


# --- the first slice ----------------------------------------------------------------------

def test_a_context_of_anchors_alone_does_not_widen_the_network_of_the_others():
  both = dataclasses.replace(SMALL, contexts=("local_attention", "global_hyper_anchors", "channel"))
  without = dataclasses.replace(SMALL, contexts=("local_attention", "channel"))
  of = lambda config, part: step_param_shapes(config)[part]["conv0"]["kernel"].shape
  features = SMALL.context_ratio * SMALL.slice_channels
  wide, narrow = of(both, "entropy_anchor"), of(without, "entropy_anchor")
  assert wide[-2] == narrow[-2] + features and of(both, "entropy_nonanchor") == of(without, "entropy_nonanchor")


@pytest.mark.parametrize("name", ["global_intra_hyper", "global_hyper_anchors"])
@pytest.mark.parametrize("scales", [False, True])
def test_the_guide_is_the_half_of_the_hyper_features_in_the_option(name, scales):
  config = dataclasses.replace(SMALL, options=dict(guide_scales=scales))
  context, given = contexts.make_context(name, config), inputs_of(SMALL, 0)
  variables = variables_of(context, given)
  changes = []
  for half in (slice(None, SMALL.M), slice(SMALL.M, None)):
    hyper = given.hyper.copy()
    hyper[..., half] += 1.0
    changes.append(not np.array_equal(run(context, variables, given),
                                      run(context, variables, given._replace(hyper=hyper))))
  assert changes == [scales, not scales]


# --- MLIC's local context -----------------------------------------------------------------

def test_plain_convolutions_see_anchors_at_every_distance_that_masked_ones_do_not():
  """An even number of steps leads from an anchor to anchors; a plain kernel also has such taps."""
  for plain in False, True:
    config = dataclasses.replace(SMALL, options=dict(plain_convolutions=plain))
    context, given = contexts.make_context("local_stacked", config), inputs_of(SMALL, 1, h=8, w=8)
    variables = variables_of(context, given)
    changed = given.anchor.copy()
    changed[:, 3, 4] += 1.0
    reached = np.abs(run(context, variables, given) - run(context, variables, given._replace(anchor=changed)))
    place = np.stack(np.indices((8, 8)), axis=-1)
    steps = in_numpy(lambda x: pack(x, anchors=False))(np.int32(abs(place - [3, 4])))
    within = steps.max(-1) <= 3 if plain else steps.sum(-1) <= 3
    np.testing.assert_array_equal(reached.max((0, -1)) > 0, within)
    widths = [p["kernel"].shape[-1] for p in (variables["params"]["convs"] if plain else variables["params"]).values()]
    assert widths == ([8, 8, 16] if plain else [16, 16, 16])


# --- MLICv2 -------------------------------------------------------------------------------

def test_output_features_are_rotated_pair_by_pair_by_their_absolute_positions():
  x, theta = normal(1, 3, 5, 8), np.float32([50.0, 0.5])
  got = in_numpy(OutputRotary().apply)({"params": {"theta": theta}}, x)
  rates = [max(t, 1.0)**-(np.arange(0, 8, 2) / 8) for t in theta]
  for row, column, pair in np.ndindex(3, 5, 4):
    angle = column * rates[0][pair] + row * rates[1][pair]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(got[0, row, column, 2 * pair:2 * pair + 2], turn @ x[0, row, column, 2 * pair:][:2],
                               atol=1e-5)


def test_scores_between_channels_may_be_divided_by_the_number_of_positions():
  """Four times the image of the same: the scores are then twice as large, so that the result is another one."""
  tile, module = normal(1, 4, 4, 6), Reweighting(cosines=False)
  variables = filled(jax.eval_shape(module.init, jax.random.key(0), tile))
  assert "temperature" not in variables["params"]
  flat = lambda x: x.reshape(-1, 6)
  affine = lambda x: x * variables["params"]["norm"]["scale"] + variables["params"]["norm"]["bias"]
  norm = lambda x: affine((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6))
  project = lambda name, x: x @ variables["params"][name]["kernel"][0, 0] + variables["params"][name]["bias"]
  u = norm(flat(tile))
  q, k, v = (project(name, u) for name in ("queries", "keys", "values"))
  weights = scipy.special.softmax(q.T @ k / np.sqrt(16), axis=-1)
  mixed = (weights @ v.T).T
  _, seen = in_numpy(functools.partial(module.apply, capture_intermediates=True, mutable="intermediates"))(
      variables, tile)
  np.testing.assert_allclose(flat(seen["intermediates"]["out"]["__call__"][0]), project("out", mixed), atol=1e-5)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
  """A codec whose map leaves out about half of the elements."""
  variables = random_variables(MAPPED)
  params = variables["params"]["slices"]["steps"]["map_both"]
  params["conv2"]["kernel"] *= 30
  params["slope"] += 1.0
  path = tmp_path_factory.mktemp("checkpoints") / "mapped"
  save_model(path, MAPPED, variables)
  return Codec.load(path, allow_custom_modules=True)


def test_what_is_left_out_is_its_mean_exactly_and_what_is_coded_is_not(mapped, photograph):
  x = photograph[None, :64, :64] / np.float32(255)

  def code(codec, x):
    y, z = codec.analyze(x, 2.0)
    return codec.slices.scan(codec.hyper(codec.round_z(z)), y)

  coded = in_numpy(lambda variables, x: build(MAPPED).apply(variables, x, method=code))(mapped.variables, x)
  kept = np.asarray(coded.keep) > 0
  assert 0.2 < kept.mean() < 0.8
  np.testing.assert_array_equal(np.asarray(coded.y_hat)[~kept], np.asarray(coded.mean)[~kept])
  assert not coded.bits[~kept].any()
  off = (np.asarray(coded.y_hat) - coded.mean)[kept]
  assert np.mean(np.abs(off - np.round(off)) > 1e-3) > 0.9   # with the predicted residual


@pytest.mark.parametrize("options", [{}, dict(portable=False), dict(chunked=False), dict(skip=0.8),
                                     dict(use_map=False)])
def test_a_file_without_residuals_of_what_is_left_out_decodes_to_what_was_predicted(mapped, photograph, options):
  codec = mapped.with_options(**options)
  blob, predicted = codec.encode_with_reconstruction(photograph, 2)
  np.testing.assert_array_equal(mapped.decode(blob), predicted)
  estimated, picture = codec.estimate(photograph, 2)
  if options.get("portable", True):
    np.testing.assert_array_equal(picture, predicted)
  assert 0.98 * estimated <= 8 * len(blob) <= 1.02 * estimated + 8 * 70


# --- refusals -----------------------------------------------------------------------------

@pytest.mark.parametrize("fields, message", [
    (dict(options=dict(head_channels=-1)), "options has head_channels=-1; wanted 0 or more"),
    (dict(contexts=("global_intra_softmax",), options=dict(hidden_window=4)),
     "options has hidden_window=4; wanted 0 or an odd number of 1 or more"),
    (dict(options=dict(rotary_output=1)), "options has rotary_output=1; wanted True or False"),
    (dict(transforms="token_mixing", options=dict(token_depthwise_first=True)),
     "options has token_depthwise_first with token_expansion=2; wanted 1"),
    (dict(options=dict(selection_spatial=True)), "options has selection_spatial with selection_widths=(); wanted one"),
    (dict(options=dict(selection_lrp=False)), "options has selection_lrp=False without selection_widths"),
    (dict(options=dict(reweighting_cosines=False)), "options has reweighting_cosines=False without reweighting"),
    (dict(options=dict(plain_convolutions=True)), "options has 'plain_convolutions', which no part of this codec")])
def test_invalid_options_are_refused_in_one_line(fields, message):
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    build(dataclasses.replace(SMALL, **fields))
  assert "\n" not in str(error.value)
