"""Tests of the scan over slices: causality, and one computation for training, encoder and decoder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables
from helpers.lowered_equations import equations_on, named
from helpers.other_options import other_options

from mlic_jax.config import CodecConfig
from mlic_jax.model import contexts, distributions
from mlic_jax.model.attention import ROTARY_CHANNELS
from mlic_jax.model.checkerboard import anchor_mask, pack
from mlic_jax.model.likelihoods import gaussian_bits
from mlic_jax.model.mlic import build
from mlic_jax.model.quantizers import NOISE, ROUNDING
from mlic_jax.model.slice_groups import choose_groups
from mlic_jax.model.slices import SliceStep
from mlic_jax.training.step import COMPILE_QUICKLY

# The slices are all that is run; other transforms take long to trace.
SMALL = dict(N=8, transforms="helpers.light_transforms", channel_widths=(8,), entropy_widths=(8,), lrp_widths=(8,))
THREE_SLICES = CodecConfig(M=12, num_slices=3, contexts=("global_intra_linear", "channel"), **SMALL)
CONFIGS = [CodecConfig(M=8, num_slices=1, window_size=3, contexts=("local_attention", "channel"), **SMALL),
           CodecConfig(M=12, num_slices=2, contexts=("local_checkerboard", "channel"),
                       options=dict(selection_widths=(8,)), **SMALL),
           CodecConfig(M=12, num_slices=2, contexts=("local_checkerboard", "channel"),
                       options=dict(selection_widths=(8,), selection_spatial=True, selection_lrp=False), **SMALL)]
ONE_LOOP = dict(scan_unroll=1)
# Gradients of scans take long to compile, so entropy networks have no hidden layers in them.
TWO_SLICES = CodecConfig(M=8, num_slices=2, contexts=("global_intra_linear", "global_inter_linear", "channel"),
                         **SMALL | dict(entropy_widths=()))
HEADS = CodecConfig(M=12, num_slices=3, contexts=("global_inter_linear",), options=dict(head_channels=5),
                    **SMALL | dict(entropy_widths=()))  # heads of 4 and 8 channels
SHAPE = (1, 4, 8)  # B, h, w


def switches(name: str) -> dict[str, bool | int]:
  """The settings of a context, with other values than they have by default."""
  return other_options(contexts.find(name))


def random_configs(count: int, seed: int, switched: bool) -> list[CodecConfig]:
  """Configs whose sizes and contexts are drawn; every context is in one of them, or every one that has settings, with
  these switched."""
  rng, names = np.random.default_rng(seed), [n for n in contexts.available() if switches(n) or not switched]
  draw, configs = lambda *values: int(rng.choice(values)), []
  for hand in np.array_split(rng.permutation(names), count):  # dealt out
    fields = dict(SMALL, lrp_widths=(8,) * draw(0, 1, 2), context_ratio=draw(1, 2), window_size=draw(3, 5))
    options, channels = {}, draw(2, 4)
    if switched:
      options, channels = {k: v for name in hand for k, v in switches(name).items()}, ROTARY_CHANNELS
    slices = draw(2, 3)
    configs.append(CodecConfig(contexts=tuple(hand.tolist()), num_slices=slices, M=slices * channels, options=options,
                               **fields))
  return configs


RANDOM_CONFIGS = random_configs(3, seed=0, switched=False) + random_configs(2, seed=1, switched=True)


def passes_of(config: CodecConfig, variables):
  """priors(hyper, y): mean, scale and map of all elements, (passes, B, h, w/2, 2 Cs or 3), in coding order.

  As in the codec, k is traced."""
  step, cs, steps = SliceStep(config), config.slice_channels, variables["params"]["slices"]["steps"]

  @jax.jit
  def priors(hyper, y):
    def one_slice(state, inputs):
      (k, params), found = inputs, []
      run = lambda *args, method: step.apply({"params": params}, k, hyper, *args, method=method)
      y_slice = jax.lax.dynamic_slice_in_dim(y, k * cs, cs, axis=-1)
      for anchors in (True, False):
        prior, state = run(state, method="anchor_prior" if anchors else "nonanchor_prior")
        found.append(jnp.concatenate(jax.tree.leaves(prior), axis=-1))
        symbols = jnp.round(pack(y_slice, anchors) - prior.mean)
        state = run(state, symbols, method="set_anchors" if anchors else "finish_slice")
      return state, jnp.stack(found)

    empty = step.apply({}, jnp.zeros_like(y), method="empty_state")
    _, found = jax.lax.scan(one_slice, empty, (jnp.arange(config.num_slices), steps))
    return found.reshape(2 * config.num_slices, *found.shape[2:])

  return lambda hyper, y: np.asarray(priors(hyper, y))  # whose slices need no program of their own


def latents(config: CodecConfig, seed: int):
  rng = np.random.default_rng(seed)
  hyper = rng.normal(size=(*SHAPE, 2 * config.M)).astype(np.float32)
  return hyper, 3 * rng.normal(size=(*SHAPE, config.M)).astype(np.float32)


def test_the_random_configs_cover_all_contexts_and_their_settings():
  of = lambda configs: sorted(name for config in configs for name in config.contexts)
  assert of(RANDOM_CONFIGS[:3]) == contexts.available()
  assert of(RANDOM_CONFIGS[3:]) == [name for name in contexts.available() if switches(name)]
  for config in RANDOM_CONFIGS[3:]:
    assert all(switches(name).items() <= dict(config.options).items() for name in config.contexts)


@pytest.mark.parametrize("config", CONFIGS + RANDOM_CONFIGS,
                         ids=lambda c: f"{c.num_slices}x{c.slice_channels}-{'-'.join((*c.contexts, *dict(c.options)))}")
def test_no_prior_depends_on_elements_that_are_coded_later_or_in_the_same_pass(config):
  priors = passes_of(config, random_variables(config))
  rng = np.random.default_rng(1)
  hyper, y = latents(config, seed=2)
  before, seen_later = priors(hyper, y), 0
  for _ in range(40):
    row, column, channel = rng.integers(SHAPE[1]), rng.integers(SHAPE[2]), rng.integers(config.M)
    changed = y.copy()
    changed[0, row, column, channel] += 5.0
    after = priors(hyper, changed)
    its_pass = 2 * (channel // config.slice_channels) + (0 if (row + column) % 2 else 1)
    np.testing.assert_array_equal(before[:its_pass + 1], after[:its_pass + 1])
    seen_later += not np.array_equal(before[its_pass + 1:], after[its_pass + 1:])
  if config.num_slices > 1:
    assert seen_later > 0, "no later prior looked at anything, so the test says nothing"


@jax.jit
def scan_of_three(variables, hyper, y):
  return build(THREE_SLICES).apply(variables, hyper, y, method=lambda m, *args: m.slices.scan(*args))


def test_the_scan_and_the_single_passes_reconstruct_the_same():
  config = THREE_SLICES
  variables = random_variables(config)
  model, (hyper, y) = build(config), latents(config, seed=3)
  y_hat, y_bits, *_ = scan_of_three(variables, hyper, y)

  @jax.jit
  def decoded_in_passes(variables, hyper, y):
    def one_slice(k, state):
      y_slice = jax.lax.dynamic_slice_in_dim(y, k * config.slice_channels, config.slice_channels, axis=-1)
      symbols = lambda prior, anchors: jnp.round(pack(y_slice, anchors) - prior.mean)
      prior, state = model.apply(variables, k, hyper, state, method="anchor_prior")
      prior, state = model.apply(variables, k, hyper, state, symbols(prior, True), method="nonanchor_prior")
      return model.apply(variables, k, hyper, state, symbols(prior, False), method="finish_slice")
    empty = model.apply(variables, hyper, method="initial_state")
    return jax.lax.fori_loop(0, config.num_slices, one_slice, empty).decoded

  np.testing.assert_allclose(decoded_in_passes(variables, hyper, y), y_hat, atol=1e-4)
  assert np.all(np.abs(y_hat - y) <= 1.0 + 1e-4)  # half a step of rounding, half a step of residual prediction
  assert y_bits.shape == y.shape and np.all(y_bits >= 0)


def test_slices_that_do_not_arrive_are_their_means_at_no_cost():
  config = THREE_SLICES
  variables, (hyper, y) = random_variables(config), latents(config, seed=7)
  cs = config.slice_channels
  scan = jax.jit(lambda y, arrived: build(config).apply(
      variables, hyper, y, ROUNDING, None, arrived, method=lambda m, *args: m.slices.scan(*args)))
  whole, part = scan_of_three(variables, hyper, y), scan(y, jnp.array([1]))
  np.testing.assert_array_equal(part.bits[..., cs:], 0)
  np.testing.assert_allclose(part.bits[..., :cs], whole.bits[..., :cs], atol=1e-4)
  np.testing.assert_allclose(part.y_hat[..., :cs], whole.y_hat[..., :cs], atol=1e-5)
  assert np.all(np.abs(part.y_hat - part.mean)[..., cs:] <= 0.5 + 1e-5)  # the residual prediction is on top
  other = scan(np.concatenate([y[..., :cs], -y[..., cs:]], axis=-1), jnp.array([1]))
  np.testing.assert_array_equal(other.y_hat, part.y_hat)


@functools.cache
def training_scan(config: CodecConfig, **options):
  """y with its noise, and the training scan over it with the gradient of bits and y_hat."""
  variables, (hyper, y) = random_variables(config), latents(config, seed=4)
  noise = np.random.default_rng(5).uniform(-0.5, 0.5, y.shape).astype(np.float32)
  model, run = build(config, **options), lambda m, *args: m.slices.scan(*args, None, m.remat)
  scan = lambda params: model.apply({"params": params}, hyper, y, NOISE, noise, method=run)
  bits = lambda params: ((coded := scan(params)).bits.sum() + coded.y_hat.sum(), coded)
  (_, coded), gradient = jax.jit(jax.value_and_grad(bits, has_aux=True), compiler_options=COMPILE_QUICKLY)(
      variables["params"])
  return y + noise, coded, gradient


def test_the_rate_of_training_is_that_of_the_latent_with_its_noise():
  noisy, coded, _ = training_scan(TWO_SLICES, scan_unroll=2)
  np.testing.assert_allclose(coded.bits, gaussian_bits(noisy, coded.mean, coded.scale), atol=1e-3)


def assert_same_scans(config: CodecConfig, expected: dict, vanishing: tuple[str, ...] = (), **options):
  """Compare results and gradients of the training scan with some options and with the `expected` ones.

  Gradients of the biases of `vanishing` layers are zero but for rounding, which is that of the largest gradients."""
  found, wanted = training_scan(config, **options)[1:], training_scan(config, **expected)[1:]
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted[1]))

  def assert_close(path, a, b):
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    vanishes = names[-1:] == ["bias"] and not set(names).isdisjoint(vanishing)
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max(), 1e-3 * largest if vanishes else 0.0))

  jax.tree_util.tree_map_with_path(assert_close, found, wanted)


@pytest.mark.parametrize("options", [dict(scan_unroll=2), dict(scan_unroll=1, for_tpu=True)], ids=str)
def test_the_unrolled_scan_and_that_for_tpus_have_the_results_and_gradients_of_one_loop(options):
  # The unrolled one is the default on CPU (test_lowering.py).
  assert_same_scans(TWO_SLICES, ONE_LOOP, **options)


@pytest.mark.parametrize("for_tpu, shape", [(False, (4, 8)), (True, (4, 4))])
def test_the_scan_for_tpus_reads_and_writes_packed_arrays(for_tpu, shape):
  config = CodecConfig(M=8, num_slices=2, **SMALL)
  variables, (hyper, y) = random_variables(config), latents(config, seed=4)
  model = build(config, scan_unroll=1, for_tpu=for_tpu)
  run = lambda y: model.apply(variables, hyper, y, NOISE, y, method=lambda m, *args: m.slices.scan(*args)).bits
  (loop,) = named(equations_on(jax.make_jaxpr(run)(y), "tpu"), "scan")
  outputs = [each for each in loop.outvars if each.aval.ndim > y.ndim]  # of all slices; y_hat is carried
  assert {each.aval.shape for each in outputs} == {(2, 1, *shape, 4)}


def test_rounding_in_the_rate_has_no_gradient_and_in_y_hat_it_has_the_identity():
  # Without residual prediction, so that y_hat of the last pass is y alone.
  config = CodecConfig(M=8, num_slices=2, contexts=(), **{**SMALL, "lrp_widths": ()})
  variables, (hyper, y) = random_variables(config), latents(config, seed=6)
  scan = lambda y: build(config).apply(variables, hyper, y, method=lambda m, *args: m.slices.scan(*args))
  last = np.zeros((*SHAPE, config.M), bool)
  last[..., -config.slice_channels:] = ~np.asarray(anchor_mask(*SHAPE[1:]))[..., None]
  sums = lambda y: (lambda coded: (coded.bits.sum(), coded.y_hat.sum()))(scan(y))
  of_bits, of_y_hat = jax.jit(jax.jacrev(sums))(y)
  np.testing.assert_array_equal(of_bits[last], 0)
  np.testing.assert_allclose(of_y_hat[last], 1, atol=1e-6)


def test_groups_of_slices_have_the_results_and_gradients_of_one_loop_on_every_platform():
  """Groups on CPU have the parts of both: a loop is that for TPUs, and its steps are those for GPUs. See also below."""
  assert_same_scans(HEADS, ONE_LOOP, ("keys",), scan_groups=(2, 1), for_tpu=True)
  assert_same_scans(HEADS, ONE_LOOP, ("keys",), scan_groups=(1, 2), packed=True, remat=True)


def test_a_loop_over_a_group_multiplies_the_channels_that_its_last_slice_reads():
  config = CodecConfig(M=24, num_slices=4, contexts=("channel",), **{**SMALL, "lrp_widths": ()})
  variables, (hyper, y) = random_variables(config), latents(config, seed=4)

  def widths(*groups):
    run = lambda m, y: m.slices.scan(hyper, y, NOISE, y).bits
    traced = jax.make_jaxpr(lambda y: build(config, scan_groups=groups).apply(variables, y, method=run))(y)
    return {each.invars[0].aval.shape[-1] for each in named(equations_on(traced, "tpu"), "conv_general_dilated")}

  assert widths(4) - widths(2, 2) == {24}
  assert widths(2, 2) - widths(4) == {6, 18}


def test_all_slices_are_in_one_group_but_on_cpus():
  assert choose_groups("cpu", 4) == (1, 1, 1, 1)
  assert choose_groups("cpu", 10) == (1, 1, 1, 1, 2, 2, 2) and choose_groups("cpu", 6) == (1, 1, 2, 2)
  assert {choose_groups(platform, 10) for platform in ("gpu", "tpu", None)} == {(10,)}


def in_four_slices(config: CodecConfig) -> CodecConfig:
  return dataclasses.replace(config, num_slices=4, M=4 * config.slice_channels)


GROUPED_CONFIGS = [in_four_slices(each) for each in RANDOM_CONFIGS + CONFIGS[1:]] + [
    CodecConfig(M=8, num_slices=4, distribution=name, contexts=("channel",), **{**SMALL, "lrp_widths": ()})
    for name in distributions.available()]


@pytest.mark.slow
@pytest.mark.parametrize("config", GROUPED_CONFIGS,
                         ids=lambda c: "-".join((*c.contexts, *dict(c.options), c.distribution)))
def test_groups_of_slices_have_the_results_and_gradients_of_one_loop_for_all_parts(config):
  assert_same_scans(config, ONE_LOOP, ("keys",), scan_groups=(2, 2))
  assert_same_scans(config, ONE_LOOP, ("keys",), scan_groups=(1, 3))
