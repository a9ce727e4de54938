"""Tests of the distributions of y: tables, round trips of files, and damaged streams."""
import argparse
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import distribution_cases
from helpers.distribution_cases import SHAPES
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_jax.coding import bitstream, portable_cdf, skip_coding
from mlic_jax.coding.bitstream import BitstreamError, PortabilityError
from mlic_jax.coding.cdf_tables import TAIL_MASS, build_table, check_table, row_scales, z_rows
from mlic_jax.coding.checkpoint_io import Model, load_model, save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.rangecoder import CoderMissingError, Decoder, Encoder
from mlic_jax.evaluation.session import load_codec
from mlic_jax.model.distributions import make_distribution
from mlic_jax.model.likelihoods import scale_level
from mlic_jax.model.scale_table import SCALE_LEVELS, SCALE_MIN
from mlic_jax.model.slices import Prior

CONFIGS = {name: dataclasses.replace(config, transforms="helpers.light_transforms", widths=())
           for name, config in distribution_cases.CONFIGS.items()}
TABULATED = [name for name, config in CONFIGS.items() if make_distribution(config).num_shapes]
SIZE = (1, 4, 6, 8)


@functools.cache
def z_prior():
  """Returns the parameters of the density of z, which is the same under all distributions."""
  return distribution_cases.variables_of(CONFIGS["laplace"])["params"]["z_prior"]


def variables_of(config):
  """Returns random variables, with y of the order of the scales."""
  variables = distribution_cases.variables_of(config)
  variables["params"]["g_a"]["out"]["kernel"] *= 5
  variables["params"]["z_prior"] = z_prior()
  return variables


@functools.cache
def table_of(name):
  return build_table(CONFIGS[name], {"params": {"z_prior": z_prior()}})


@functools.cache
def codec_of(name):
  fingerprint = bytes([list(CONFIGS).index(name)]) * 8
  return Codec(Model(name, CONFIGS[name], variables_of(CONFIGS[name]), table_of(name), fingerprint, None))


def rows_of(table):
  """[(counts of its cells, offset)], row after row."""
  rows = np.split(table.lookup, np.flatnonzero(table.lookup == 2**16) + 1)[:-1]
  return [(np.diff(row[1:]), offset) for row, offset in zip(rows, table.offset)]


def has_shifts(distribution):
  return "level_shift" in distribution.channel_parameters


@pytest.mark.parametrize("name", TABULATED)
def test_the_rows_of_a_table_cost_what_the_distribution_says(name):
  """The bits of a row's cells by their counts are near those of `bits`, which training minimizes."""
  config = CONFIGS[name]
  distribution, rows = make_distribution(config), rows_of(table_of(name))
  compiled_bits, lowest = jax.jit(distribution.bits), min(offset for _, offset in rows)
  symbols_of_all = np.arange(lowest, 1 - lowest, dtype=np.float32)   # one shape, compiled once
  check_table(table_of(name))
  assert len(rows) == SCALE_LEVELS * distribution.num_shapes + config.N == z_rows(config)[-1] + 1
  for shape in range(distribution.num_shapes):
    for level, shift in itertools.product((0, 20, 40, 55), (0, -3, 2) if has_shifts(distribution) else (0,)):
      row = int(skip_coding.shifted_levels(np.array(level), np.array(shift)))
      counts, offset = rows[SCALE_LEVELS * shape + row]
      parameters = [np.float32(shape)] if distribution.num_shapes > 1 else []
      parameters += [np.float32(shift)] if has_shifts(distribution) else []
      bits = np.asarray(compiled_bits(symbols_of_all, np.float32(row_scales()[level]), *parameters))
      bits = bits[offset - lowest:][:len(counts) - 1]
      likelihood = 2.0**-bits
      certain = likelihood > 100 / 2**16
      assert certain.any()
      np.testing.assert_allclose(-np.log2(counts[:-1][certain] / 2**16), bits[certain], atol=0.04)
      assert len(counts) == 2 - 2 * offset
      assert 2 * distribution.cdf(float(offset), row_scales()[row], shape) <= TAIL_MASS


@st.composite
def passes(draw, name):
  """Returns a Prior of a pass under a distribution, and symbols, some of them far outside the CDF rows."""
  config = CONFIGS[name]
  distribution, rng = make_distribution(config), np.random.default_rng(draw(st.integers(0, 2**32)))
  raw = [jnp.asarray(rng.normal(0, draw(st.sampled_from([0.1, 1.0, 30.0])), SIZE), jnp.float32)
         for _ in range(distribution.outputs)]
  learned = {key: jnp.asarray(rng.uniform(-3, 2, SIZE[-1]), jnp.float32) for key in distribution.channel_parameters}
  mean, scale, parameters = distribution.predict(raw, learned)
  symbols = np.rint(rng.normal(size=SIZE) * np.asarray(scale)).astype(np.int32)
  far = draw(st.lists(st.tuples(st.integers(0, symbols.size - 1), st.integers(-2**27, 2**27)), max_size=5))
  for index, value in far:
    symbols.flat[index] = value
  return Prior(mean, scale, None, parameters), symbols


def content_of(config, origin, skipped):
  return bitstream.Bitstream(bytes(8), 64, 64, None, config.num_slices, (), origin=origin, skipped_rows=skipped)


def coded(name, prior, symbols, portable, skipped):
  """Returns the stream of a pass, the symbols in it, and the content of its file without the stream."""
  config, positions = CONFIGS[name], scale_level(prior.scale)
  origin = portable_cdf.origin_of_this_machine(config) if portable else None
  encoder, distribution = Encoder(table_of(name), "numba"), make_distribution(config)
  coding = skip_coding.choose(distribution, positions, prior, origin, skipped, use_map=False)
  symbols = skip_coding.mask_skipped(symbols, coding)
  skip_coding.encode(encoder, symbols, coding)
  return encoder.finish(), symbols, content_of(config, origin, skipped)


def decoded(name, prior, stream, content, positions=None):
  decoder = Decoder(table_of(name), stream, "numba")
  positions = scale_level(prior.scale) if positions is None else positions
  coding = skip_coding.read_choice(make_distribution(CONFIGS[name]), decoder, positions, prior, content)
  symbols = skip_coding.decode(decoder, coding)
  decoder.finish()
  return symbols


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_pass_of_any_symbols_round_trips(name, data):
  prior, symbols = data.draw(passes(name))
  portable = data.draw(st.booleans()) and name in TABULATED
  stream, symbols, content = coded(name, prior, symbols, portable, data.draw(st.sampled_from([0, 0, 1, 30])))
  np.testing.assert_array_equal(decoded(name, prior, stream, content), symbols)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_pass_gives_integers_or_one_line(name, data):
  prior, symbols = data.draw(passes(name))
  stream, _, content = coded(name, prior, symbols, data.draw(st.booleans()) and name in TABULATED, 0)
  damaged = bytearray(stream[:data.draw(st.integers(0, len(stream)))] + data.draw(st.binary(max_size=8)))
  for place in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=4)):
    if damaged:
      damaged[place] ^= data.draw(st.integers(1, 255))
  try:
    assert decoded(name, prior, bytes(damaged), content).shape == SIZE
  except BitstreamError as error:
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["laplace", "shapes by channel", "shapes by element"])
def test_another_machine_takes_the_same_rows_of_a_portable_file(name):
  """Scales and shapes that are off by most of the margin, as another processor computes them."""
  rng, moved = np.random.default_rng(0), 0
  distribution = make_distribution(CONFIGS[name])
  for _ in range(20):
    shape = jnp.asarray(rng.uniform(0, 3, SIZE), jnp.float32)
    scale = jnp.asarray(np.maximum(np.exp(rng.normal(0, 1.5, SIZE)), SCALE_MIN), jnp.float32)
    parameters = [shape] if distribution.num_shapes > 1 else []
    parameters += [jnp.asarray(rng.integers(-3, 3, SIZE), jnp.float32)] if has_shifts(distribution) else []
    prior = Prior(jnp.asarray(rng.normal(size=SIZE), jnp.float32), scale, None, tuple(parameters))
    symbols = np.rint(rng.normal(size=SIZE) * np.asarray(scale)).astype(np.int32)
    stream, symbols, content = coded(name, prior, symbols, True, 0)
    positions = np.asarray(scale_level(scale))
    epsilon = 0.9 * 2.0**-content.origin.epsilon_exponent
    off = lambda values, epsilon=epsilon: (values + rng.uniform(-epsilon, epsilon, SIZE)).astype(np.float32)
    there = prior
    if not distribution.shapes_agree:
      there = prior._replace(parameters=(jnp.asarray(off(np.asarray(shape))),))
    np.testing.assert_array_equal(decoded(name, there, stream, content, off(positions)), symbols)
    moved += np.sum(np.asarray(there.scale) != off(positions))
  assert moved


def test_rows_of_elements_are_cumulative_counts_of_their_mixtures():
  distribution = make_distribution(CONFIGS["two Gaussians"])
  scales = np.array([[0.11, 2.0, 300.0], [0.5, 0.11, 0.11]], np.float32)
  offsets, log_weights = np.array([[0, 7.5, 1e9]], np.float32), np.log(np.array([[0.9, 0.5, 0.5], [0.1, 0.5, 0.5]]))
  lookup, offset = distribution.element_table((*scales, *offsets, *log_weights.astype(np.float32)))
  table = skip_coding.CDFTable(lookup, offset)
  check_table(table)
  compiled_bits = jax.jit(distribution.bits)
  for i, (counts, first) in enumerate(rows_of(table)):
    symbols = np.arange(first, first + len(counts) - 1, dtype=np.float32)
    if i < 2:
      parameters = [np.float32(each) for each in (*scales[:, i], *offsets[:, i], *log_weights[:, i])]
      likelihood = 2.0**-np.asarray(compiled_bits(symbols, None, *parameters))
      np.testing.assert_allclose(counts[:-1] / 2**16, likelihood, atol=4e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_round_trips_and_its_file_is_the_estimated_bits(photograph, name):
  codec = codec_of(name)
  options = {} if name in TABULATED else dict(portable=False)
  codec = codec.with_options(**options)
  blob, predicted = codec.encode_with_reconstruction(photograph)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  bits, _ = codec.estimate(photograph)
  assert 0.98 * bits / 8 <= len(blob) <= 1.02 * bits / 8 + 64
  skipped, predicted = codec.with_options(skip=2.7).encode_with_reconstruction(photograph)
  np.testing.assert_array_equal(codec.decode(skipped), predicted)
  assert len(skipped) < len(blob)


@pytest.mark.parametrize("name, options", [("laplace", {}), ("three Gaussians", dict(portable=False))])
def test_elements_that_are_skipped_cost_no_bits(photograph, name, options):
  y_bits, _ = codec_of(name).with_options(skip=2.7, **options).element_bits(photograph)
  assert np.mean(y_bits == 0) > 0.02


def test_a_model_directory_has_the_parameters_of_its_distribution(tmp_path):
  config = CONFIGS["shapes by element"]
  variables = variables_of(config)
  save_model(tmp_path / "model", config, variables)
  model = load_model(tmp_path / "model", allow_custom_modules=True)
  assert model.config == config
  jax.tree.map(np.testing.assert_array_equal, model.variables, variables)


def test_a_cut_file_decodes_in_part_under_a_mixture(photograph):
  codec = codec_of("three Gaussians")
  blob = codec.encode(photograph, portable=False)
  assert codec.decode(blob[:len(blob) * 3 // 4], partial=True).shape == photograph.shape


def test_a_mixture_refuses_portable_files_and_the_coder_with_one_table(photograph, tmp_path):
  with pytest.raises(PortabilityError, match="gaussian_mixture has no portable files .*wanted portable=") as error:
    codec_of("two Gaussians").encode(photograph)
  assert "\n" not in str(error.value)
  save_model(tmp_path / "mixture", CONFIGS["two Gaussians"], variables_of(CONFIGS["two Gaussians"]))
  with pytest.raises(CoderMissingError, match="the distribution gaussian_mixture a row for each element; wanted numba"):
    Codec.load(tmp_path / "mixture", "tfc", allow_custom_modules=True)


def test_an_evaluation_writes_the_files_that_a_mixture_has(tmp_path):
  save_model(tmp_path / "mixture", CONFIGS["two Gaussians"], variables_of(CONFIGS["two Gaussians"]))
  arguments = argparse.Namespace(coder=None, allow_custom_modules=True)
  codec = load_codec(tmp_path / "mixture", "tfc", arguments)    # the default of an evaluation
  assert not codec.options.portable and codec.coder.range_coder == "numba"
  arguments.coder = "tfc"
  with pytest.raises(CoderMissingError):
    load_codec(tmp_path / "mixture", "tfc", arguments)


def test_a_file_of_another_distribution_is_refused_with_the_distribution(photograph):
  blob = codec_of("shapes by channel").encode(photograph)
  with pytest.raises(BitstreamError, match="laplace is .*, of the distribution laplace"):
    codec_of("laplace").decode(blob)


def test_a_model_directory_of_an_unknown_distribution_is_refused_in_one_line(tmp_path):
  config = CONFIGS["laplace"]
  save_model(tmp_path / "model", config, variables_of(config))
  settings_file = tmp_path / "model" / "config.json"
  settings_file.write_text(settings_file.read_text().replace('"laplace"', '"student_t"'))
  with pytest.raises(ValueError, match="model: no distribution 'student_t' in mlic_jax/model/distributions/") as error:
    load_model(tmp_path / "model", allow_custom_modules=True)
  assert "\n" not in str(error.value)


def test_the_distribution_belongs_to_the_fingerprint(tmp_path):
  found = set()
  for shapes in (1.4,), (1.6,):
    config = dataclasses.replace(CONFIGS["one shape"], options=dict(shapes=shapes))
    save_model(tmp_path / "model", config, variables_of(config))
    found.add(load_model(tmp_path / "model", allow_custom_modules=True).fingerprint)
  assert len(found) == 2 and len(SHAPES) == make_distribution(CONFIGS["shapes by channel"]).num_shapes
