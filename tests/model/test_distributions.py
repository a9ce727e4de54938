"""Tests of the distributions of y against NumPy and SciPy references in float64 and float32."""
import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers.distribution_cases import CONFIGS, SMALL, variables_of
from jax.experimental import enable_x64

from mlic_jax.model import distributions, entropy_model, generalized_normal
from mlic_jax.model.distributions import BITS_MAX, OUTSIDE_MIN, laplace, logistic, make_distribution
from mlic_jax.model.generalized_normal import alpha_of_tail, bin_nats
from mlic_jax.model.mlic import build
from mlic_jax.model.quantizers import NOISE
from mlic_jax.model.registry import PartError
from mlic_jax.model.scale_table import SCALE_MIN

RECORDED = Path(__file__).parents[1] / "fixtures/tfc_distributions/bits.json"
SCALES = (SCALE_MIN, 0.5, 3.0, 40.0, 250.0)
SHAPES = (0.5, 0.8, 1.0, 1.4, 2.0, 3.0, 4.0)


def bins(frozen, v):
  """The mass of the unit bins around v, of a scipy distribution; differences are taken in the tail."""
  v = np.abs(v)
  return np.where(v < 0.5, frozen.cdf(v + 0.5) - frozen.cdf(v - 0.5), frozen.sf(v - 0.5) - frozen.sf(v + 0.5))


def compressai_likelihood(v, mean, scale):
  """GaussianConditional._likelihood of CompressAI 1.2.8, without its bounds."""
  values = np.abs(v - mean)
  standardized_cumulative = lambda x: 0.5 * scipy.special.erfc(-(2**-0.5) * x)
  return standardized_cumulative((0.5 - values) / scale) - standardized_cumulative((-0.5 - values) / scale)


def residuals(width):
  """Elements from the mean into the tail, integers and halves among them, (250,) for every width."""
  return np.concatenate([np.linspace(-12, 12, 241) * width, [-1.5, -1, -0.5, -0.2, 0, 0.3, 0.5, 1, 2]])


def generalized(shape):
  config = dataclasses.replace(SMALL, distribution="generalized_gaussian", options=dict(shapes=(shape,)))
  return make_distribution(config)


def named(name):
  return make_distribution(dataclasses.replace(SMALL, distribution=name))


@functools.cache
def compiled_bits(name):
  """The bits of a distribution of CONFIGS, a function that all tests of this file share."""
  return jax.jit(make_distribution(CONFIGS[name]).bits)


NUM_PARAMETERS = dict(zip(CONFIGS, (0, 0, 0, 0, 2, 1, 5, 8)))

# name: (distribution, scale -> the reference)
REFERENCES = {
    "laplace": (named("laplace"), lambda scale: scipy.stats.laplace(scale=laplace.UNIT * scale)),
    "logistic": (named("logistic"), lambda scale: scipy.stats.logistic(scale=logistic.UNIT * scale)),
    **{f"shape {shape}": (generalized(shape), lambda scale, shape=shape: scipy.stats.gennorm(
        shape, scale=alpha_of_tail(OUTSIDE_MIN, shape) / SCALE_MIN * scale)) for shape in SHAPES}}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 3e-4)])
def test_bits_are_those_of_the_reference_for_likelihoods_from_1e_9_to_1(name, dtype, tolerance):
  """Relative to the bits where these are above 1, and absolute below. In float32 wide scales are a difference of nearly
  equal numbers, as they are for the Gaussian."""
  distribution, reference = REFERENCES[name]
  met = 0
  for scale in SCALES:
    frozen = reference(scale)
    v = residuals(frozen.std()).astype(dtype)
    wanted = bins(frozen, v.astype(np.float64))
    with enable_x64(dtype is np.float64):
      got = np.asarray(distribution.bits(jnp.asarray(v), dtype(scale)))
    assert got.dtype == dtype
    likely = wanted > 1e-9
    bits = -np.log2(wanted[likely])
    np.testing.assert_array_less(np.abs(got[likely] - bits) / np.maximum(bits, 1), tolerance)
    assert np.all(got <= BITS_MAX * 1.001)
    met += likely.sum()
  assert met > 300


@pytest.mark.parametrize("recorded", json.loads(RECORDED.read_text()),
                         ids=lambda each: "{distribution}-{scale}".format(**each))
def test_laplace_and_logistic_are_the_noisy_distributions_of_tensorflow_compression(recorded):
  """The likelihoods of the recorded values are 1e-9 to 1; see tests/fixtures/tfc_distributions/make.py."""
  name = recorded["distribution"]
  unit = {"laplace": laplace.UNIT, "logistic": logistic.UNIT}[name]
  count = len(recorded["residuals"])
  assert 8 < count <= 100
  with enable_x64():  # in arrays of one shape, whose operations are compiled once
    got = np.asarray(named(name).bits(np.resize(recorded["residuals"], 100), recorded["scale"] / unit))[:count]
  np.testing.assert_allclose(got, recorded["bits"], rtol=1e-6, atol=1e-6)


def test_the_gaussian_is_compressai_s():
  distribution = make_distribution(SMALL)
  for scale in SCALES:
    v = residuals(scale)
    wanted = compressai_likelihood(v, 0.0, scale)
    with enable_x64():
      got = np.asarray(distribution.bits(jnp.asarray(v), scale))
    likely = wanted > 1e-9
    np.testing.assert_allclose(got[likely], -np.log2(wanted[likely]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_a_mixture_is_the_sum_of_compressai_s_gaussians(count):
  """GaussianMixtureConditional of CompressAI: the likelihood is the sum of weight times that of each component."""
  rng = np.random.default_rng(count)
  v = rng.normal(0, 20, 4000)
  scales = np.exp(rng.uniform(np.log(SCALE_MIN), 3, (count, 4000)))
  means = np.concatenate([np.zeros((1, 4000)), rng.normal(0, 5, (count - 1, 4000))])
  logits = rng.normal(0, 2, (count, 4000))
  weights = scipy.special.softmax(logits, axis=0)
  wanted = sum(w * compressai_likelihood(v, m, s) for w, m, s in zip(weights, means, scales))
  likely = wanted > 1e-9
  assert likely.sum() > 2000
  bits_of = compiled_bits("two Gaussians" if count == 2 else "three Gaussians")
  for dtype, tolerance in (np.float64, 1e-6), (np.float32, 3e-4):
    with enable_x64(dtype is np.float64):
      parameters = [jnp.asarray(each, dtype) for each in (*scales, *means[1:], *np.log(weights))]
      got = np.asarray(bits_of(jnp.asarray(v, dtype), None, *parameters), np.float64)
    bits = -np.log2(wanted[likely])
    np.testing.assert_array_less(np.abs(got[likely] - bits) / np.maximum(bits, 1), tolerance)


@pytest.mark.parametrize("name", ["laplace", "logistic", "one shape", "shapes by channel", "shapes by element",
                                  "three Gaussians"])
def test_gradients_are_the_differences_of_the_bits_in_float64(name):
  distribution = make_distribution(CONFIGS[name])
  rng = np.random.default_rng(0)
  count = NUM_PARAMETERS[name]
  arguments = np.concatenate([rng.normal(0, 2, (1, 300)), np.exp(rng.uniform(-1, 2, (1, 300))),
                              rng.uniform(0.3, 2.7, (count, 300))])
  with enable_x64():
    summed = lambda *arguments: ((bits := distribution.bits(*arguments)).sum(), bits)
    # One program for the bits and their slopes.
    both = jax.jit(jax.grad(summed, argnums=tuple(range(len(arguments))), has_aux=True))
    slopes, bits = both(*arguments)
    likely = np.asarray(bits) < BITS_MAX - 1
    for i, slope in enumerate(slopes):
      step = np.zeros_like(arguments)
      step[i] = 1e-6
      after, before = (np.asarray(both(*arguments + sign * step)[1]) for sign in (1, -1))
      wanted = (after - before) / 2e-6
      # A difference across the kink of |residual|, of a bin edge or of a hat says nothing of the slope at the point.
      smooth = likely & (np.abs(np.abs(arguments[0]) - 0.5) > 1e-3) & (np.abs(arguments[0]) > 1e-3)
      if name.startswith("shapes"):
        smooth &= np.abs(arguments[2] - np.rint(arguments[2])) > 1e-3
      assert smooth.sum() > 150
      np.testing.assert_allclose(np.asarray(slope)[smooth], wanted[smooth], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "gaussian"])
def test_far_elements_cost_what_is_bounded_and_gradients_lead_back_without_exploding(name):
  distribution = make_distribution(CONFIGS[name])
  count = NUM_PARAMETERS[name]
  v = jnp.float32([-1e6, -3000, -40, -3, 0, 0.5, 3, 40, 3000, 1e6])
  parameters = [jnp.full_like(v, value) for value in (0.5,) * count]

  @jax.jit
  def bits_and_slope(v, *others):
    bits, pull_back = jax.vjp(lambda v: distribution.bits(v, *others), v)
    return bits, *pull_back(jnp.ones_like(bits))

  for scale in (SCALE_MIN, 1.0, 256.0):
    if name.endswith("Gaussians"):
      parameters[:count // 3 + 1] = [jnp.full_like(v, scale)] * (count // 3 + 1)
    bits, slope = map(np.asarray, bits_and_slope(v, jnp.float32(scale), *parameters))
    assert np.isfinite(bits).all() and np.isfinite(slope).all() and bits.max() <= BITS_MAX * 1.001
    far = np.abs(np.asarray(v)) > 1e3
    assert np.all(np.sign(slope[far]) == np.sign(np.asarray(v)[far])) and np.abs(slope).max() < 500
    assert np.abs(slope[far]).min() > 1e-9


def test_at_the_smallest_scale_the_zero_bin_is_as_probable_under_each():
  for name in "laplace", "logistic", "gaussian", "one shape":
    distribution = make_distribution(CONFIGS[name])
    outside = 2 * float(distribution.cdf(np.array(-0.5), SCALE_MIN))
    assert outside == pytest.approx(math.erfc(0.5 / SCALE_MIN / 2**0.5), rel=1e-6)


def test_shape_2_is_the_gaussian_and_shape_1_the_laplace_distribution():
  v, scale = np.linspace(-8, 8, 161, dtype=np.float32), np.float32(1.3)
  bits_of = lambda *distributions: jax.jit(lambda *args: [each.bits(*args) for each in distributions])(v, scale)
  np.testing.assert_allclose(*bits_of(generalized(2.0), make_distribution(SMALL)), atol=1e-4)
  np.testing.assert_allclose(*bits_of(generalized(1.0), named("laplace")), atol=1e-4)


@pytest.mark.parametrize("shift", [-3, 0, 2])
def test_a_level_shift_moves_all_scales_but_those_of_the_first_levels(shift):
  bits_of, step = compiled_bits("shapes by channel"), math.log(256 / SCALE_MIN) / 63
  v, scale, shape = jnp.linspace(-3, 3, 61)[:, None], jnp.float32([0.13, 0.3, 2.0, 40.0]), jnp.float32(1)
  moved = bits_of(v, scale, shape, jnp.float32(shift))
  expected = bits_of(v, jnp.maximum(scale * np.float32(np.exp(shift * step)), SCALE_MIN), shape, jnp.float32(0))
  np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
  first = jnp.float32([SCALE_MIN, 0.12, 0.115, SCALE_MIN])
  np.testing.assert_array_equal(*(bits_of(v, first, shape, jnp.float32(each)) for each in (0, shift)))


def test_the_gradient_with_respect_to_the_shape_is_finite_at_the_edge_of_a_bin():
  slope = jax.jit(jax.grad(lambda shape: bin_nats(jnp.float32(0.5), jnp.float32(0.01), shape)))
  assert np.isfinite(slope(0.5)) and np.isfinite(slope(3.0))


@pytest.mark.parametrize("terms, tolerance", [("TERMS", 1e-7), ("TERMS_FLOAT64", 1e-10)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sums_have_enough_terms_for_their_dtype(monkeypatch, terms, tolerance, shape):
  monkeypatch.setattr(generalized_normal, "TERMS_FLOAT64", getattr(generalized_normal, terms))
  x = np.linspace(0.01, generalized_normal.TAIL_MAX, 400)
  with enable_x64():
    mass, log_tail = generalized_normal._mass_and_log_tail(jnp.asarray(x**(1 / shape)), shape)
  np.testing.assert_allclose(mass, scipy.special.gammainc(1 / shape, x), rtol=tolerance)
  atol = np.where(x < generalized_normal.SPLIT, tolerance, 1e-30)  # there the tail is 1 - mass
  tail = scipy.special.gammaincc(1 / shape, x)
  np.testing.assert_array_less(np.abs(np.exp(log_tail) - tail), tolerance * tail + atol)


def test_the_gradient_of_a_generalized_gaussian_stores_one_array_for_each_argument():
  v = np.linspace(-3, 3, 7, dtype=np.float32)
  for moving in (0,), (0, 1), (0, 1, 2):
    arguments = [v, 1 + 0 * v, 1.5 + 0 * v]

    def bits(*chosen, moving=moving, arguments=arguments):
      return bin_nats(*(chosen[moving.index(i)] if i in moving else each for i, each in enumerate(arguments)))

    pull_back = jax.eval_shape(lambda *chosen, bits=bits: jax.vjp(bits, *chosen)[1], *(arguments[i] for i in moving))
    assert sum(leaf.shape == v.shape for leaf in jax.tree.leaves(pull_back)) <= len(moving)


# With parameters that each channel learns.
LEARNED = dataclasses.replace(CONFIGS["shapes by channel"], transforms="helpers.light_transforms", widths=(),
                              entropy_widths=())


def test_a_codec_learns_the_parameters_of_its_distribution():
  config, rng = LEARNED, np.random.default_rng(0)
  y, hyper = (rng.normal(0, 3, (1, 4, 4, n)).astype(np.float32) for n in (config.M, 2 * config.M))
  noise, scan = rng.uniform(-0.5, 0.5, y.shape).astype(np.float32), lambda model, *args: model.slices.scan(*args)
  rate = lambda params: build(config, scan_unroll=1).apply(
      {"params": params}, hyper, y, NOISE, noise, method=scan).bits.sum()
  slopes = jax.jit(jax.grad(rate))(variables_of(config)["params"])["slices"]["steps"]
  assert all(np.all(slope != 0) for slope in slopes["distribution_parameters"].values())
  (bias,) = [np.asarray(layer["bias"]) for layer in slopes["entropy_anchor"].values()]
  assert bias.shape[-1] == make_distribution(config).outputs * config.slice_channels
  assert np.isfinite(bias).all() and np.mean(bias != 0) > 0.9


@pytest.mark.parametrize("name", ["shapes by element", "three Gaussians"])
def test_every_output_of_the_networks_has_a_gradient(name):
  distribution, rng = make_distribution(CONFIGS[name]), np.random.default_rng(0)
  y, *raw = rng.uniform(0.2, 0.8, (1 + distribution.outputs, 500)).astype(np.float32)

  @jax.jit
  @jax.grad
  def slopes_of(raw):
    mean, scale, parameters = distribution.predict(raw, {})
    return distribution.bits(y - mean, scale, *parameters).sum()

  slopes = np.asarray(slopes_of(raw))
  assert np.isfinite(slopes).all() and np.all(np.mean(slopes != 0, axis=1) > 0.9)


def test_intermediates_are_those_of_networks():
  config, rng = LEARNED, np.random.default_rng(0)
  y, hyper = (rng.normal(size=(1, 4, 4, n)).astype(np.float32) for n in (config.M, 2 * config.M))
  found = jax.eval_shape(functools.partial(entropy_model.intermediates, config),
                         variables_of(config)["params"]["slices"], hyper, y)
  assert "entropy_anchor" in found[0] and not any("distribution" in name for name in found[0])


@pytest.mark.parametrize("name, options, message", [
    ("laplac", {}, "no distribution 'laplac' in mlic_jax/model/distributions/; the nearest is 'laplace'"),
    ("nowhere.at_all", {}, "distribution 'nowhere.at_all': no such module"),
    ("laplace", dict(shapes=(1.0,)), "options has 'shapes', which no part of this codec reads"),
    ("generalized_gaussian", dict(shape_per="pixel"), "shape_per='pixel'; wanted one of model, channel, element"),
    ("generalized_gaussian", dict(shapes=(2.0, 1.0)), "wanted rising numbers from 0.5 to 4.0"),
    ("generalized_gaussian", dict(shapes=(0.1,)), "wanted rising numbers from 0.5 to 4.0"),
    ("generalized_gaussian", dict(shapes=(1.0, 2.0)), "2 shapes with shape_per='model'; wanted one shape"),
    ("generalized_gaussian", dict(shape_per="element"), "1 shapes with shape_per='element'; wanted 2 to 32 shapes"),
    ("gaussian_mixture", dict(mixture_components=4), "mixture_components=4; wanted 2 or 3")])
def test_an_invalid_config_is_refused_in_one_line(name, options, message):
  with pytest.raises(ValueError, match=message) as error:
    build(dataclasses.replace(SMALL, distribution=name, options=options))
  assert "\n" not in str(error.value)


def test_a_distribution_without_its_methods_is_refused(tmp_path, monkeypatch):
  (tmp_path / "unfinished.py").write_text("class Distribution:\n  bits = lambda self, residual, scale: residual\n")
  (tmp_path / "own").mkdir()
  (tmp_path / "unfinished.py").rename(tmp_path / "own" / "unfinished.py")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(PartError, match="has no Distribution.cdf"):
    distributions.find("own.unfinished")


def test_a_gaussian_is_left_out_of_the_record_of_a_model():
  assert "distribution" not in SMALL.to_dict()
  config = CONFIGS["laplace"]
  assert config.to_dict()["distribution"] == "laplace" and type(config).from_dict(config.to_dict()) == config
