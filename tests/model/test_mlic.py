"""Tests of the codec module and its layers, except for the scan over slices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, random_variables
from helpers.lowered_equations import equations_on, named, products

from mlic_jax.config import CodecConfig
from mlic_jax.model.checkerboard import anchor_mask, pack, unpack
from mlic_jax.model.layers import Conv, ConvTranspose, depthwise_conv, pixel_shuffle
from mlic_jax.model.mlic import build
from mlic_jax.model.quantizers import NOISE
from mlic_jax.model.straight_through import lower_bound, ste_round

CODEC = dataclasses.replace(TINY, transforms="helpers.light_transforms",  # others take long to trace
                            contexts=("local_checkerboard", "global_intra_linear"))
LIGHT = dataclasses.replace(CODEC, M=16, num_slices=1, hyper_widths=(8, 8), contexts=(), entropy_widths=(8,),
                            lrp_widths=(8,))
# Blocks that are rematerialized or run in bfloat16.
BLOCKS = dataclasses.replace(LIGHT, transforms="unshuffled", widths=(8, 8), num_rates=0)


@pytest.fixture(scope="module")
def variables():
  return random_variables(CODEC)


@pytest.fixture(scope="module")
def x():
  return np.random.default_rng(0).uniform(size=(2, 64, 128, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def latents():
  """y and z of two images, for LIGHT."""
  rng = np.random.default_rng(0)
  return [rng.normal(0, 3, shape).astype(np.float32) for shape in ((2, 4, 8, LIGHT.M), (2, 1, 2, LIGHT.N))]


def test_pack_and_unpack_split_and_join_the_checkerboard():
  x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  both = unpack(pack(x, True), True) + unpack(pack(x, False), False)
  np.testing.assert_array_equal(both, x)
  mask = np.asarray(anchor_mask(4, 6))
  np.testing.assert_array_equal(unpack(pack(x, True), True), x * mask[..., None])
  assert not mask[0, 0] and mask[0, 1] and mask[1, 0]
  np.testing.assert_array_equal(pack(x, True)[0, 1], x[0, 1, [0, 2, 4]])


def test_outputs_have_the_shapes_of_the_contract(variables, x):
  out = jax.eval_shape(build(CODEC).apply, variables, x, jnp.array([1.0, 2.5]))
  assert out.x_hat.shape == x.shape and out.y_hat.shape == out.y_bits.shape == (2, 4, 8, CODEC.M)
  assert out.z_bits.shape == (2, 1, 2, CODEC.N)


@pytest.fixture(scope="module")
def code():
  """A compiled function of y and z of LIGHT, the index of their first image in the batch, and generators by name."""
  model, variables = build(LIGHT), random_variables(LIGHT)
  return jax.jit(lambda y, z, first, **rngs: model.apply(variables, y, z, 2.0, None, first, rngs=rngs, method="code"))


def test_noise_is_drawn_only_when_its_rng_is_given(latents, code):
  run = lambda **rngs: code(*latents, 0, **rngs).y_bits
  np.testing.assert_array_equal(run(), run())
  noisy = run(noise=jax.random.key(0))
  np.testing.assert_array_equal(noisy, run(noise=jax.random.key(0)))
  assert not np.array_equal(noisy, run(noise=jax.random.key(1))) and not np.array_equal(noisy, run())


def test_the_noise_of_training_is_as_wide_as_the_rounding_that_it_stands_for():
  residual = np.random.default_rng(0).normal(size=(2, 16, 16, 8)).astype(np.float32)
  received, counted = NOISE.quantize(residual, NOISE.draws(jax.random.key(0), residual.shape))
  noise = counted - residual
  assert -0.5001 < noise.min() < -0.49 and 0.49 < noise.max() < 0.5001
  np.testing.assert_allclose([np.mean(noise), np.var(noise)], [0, 1 / 12], atol=0.01)
  np.testing.assert_array_equal(received, np.round(residual))


def test_the_noise_of_an_image_is_that_of_its_index_in_the_whole_batch(latents, code):
  run, last = (lambda *args: code(*args, noise=jax.random.key(0))), [each[1:] for each in latents]
  both, second = run(*latents, 0), run(*last, 1)
  np.testing.assert_allclose(second.y_bits[0], both.y_bits[1], atol=1e-3)
  np.testing.assert_allclose(second.z_bits[0], both.z_bits[1], atol=1e-3)
  assert np.abs(run(*last, 0).y_bits[0] - both.y_bits[1]).max() > 0.1


def test_bfloat16_touches_the_transforms_and_no_parameter(x):
  variables = random_variables(BLOCKS)
  exact = jax.jit(build(BLOCKS).apply)(variables, x)
  coarse = jax.jit(build(BLOCKS, transform_dtype=jnp.bfloat16).apply)(variables, x)
  error = np.abs(coarse.x_hat - exact.x_hat)
  assert 1e-5 < error.mean() < 0.1 * np.std(exact.x_hat)
  assert coarse.x_hat.dtype == coarse.y_hat.dtype == jnp.float32


def test_bfloat16_transforms_round_neither_y_nor_the_image(x):
  model, variables = build(BLOCKS, transform_dtype=jnp.bfloat16), random_variables(BLOCKS)

  @jax.jit
  def transformed(variables, x):
    y, _ = model.apply(variables, x, method="analyze")
    return y, model.apply(variables, y, method="synthesize")

  for values in transformed(variables, x):
    assert np.mean(values == values.astype(jnp.bfloat16)) < 0.1  # of float32, one in 2^16 is a bfloat16 by chance


def test_the_precision_of_the_entropy_path_is_an_option_of_training_and_not_of_coding(variables):
  """On CPU products have one precision, so the claim is about the program that an accelerator is given."""
  y, z, highest = jnp.zeros((1, 4, 4, CODEC.M)), jnp.zeros((1, 1, 1, CODEC.N)), jax.lax.Precision.HIGHEST
  for precision, in_training in [("highest", highest), ("high_gradients", highest),
                                 ("default", jax.lax.Precision.DEFAULT)]:
    model = build(CODEC, entropy_precision=precision)
    scan = lambda y, z: model.apply(variables, y, z, 2.0, method="code").y_bits
    coding = lambda z: model.apply(variables, z, method="hyper")
    # The gains of a rate and g_s are outside the entropy path.
    assert products(equations_on(jax.make_jaxpr(scan)(y, z), "tpu")) == {highest, in_training}
    assert products(equations_on(jax.make_jaxpr(coding)(z), "tpu")) == {highest}


def test_a_low_precision_of_the_entropy_path_leaves_out_the_last_layers(variables):
  model = build(CODEC, entropy_precision="default", transform_precision="high")
  y, z, cs = jnp.zeros((1, 4, 4, CODEC.M)), jnp.zeros((1, 1, 1, CODEC.N)), CODEC.slice_channels
  bits = lambda y, z: model.apply(variables, y, z, 2.0, method="code").y_bits.sum()
  found = named(equations_on(jax.make_jaxpr(bits)(y, z), "tpu"), "conv_general_dilated")
  in_full = [each.outvars[0].aval.shape[-1] for each in found
             if each.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2]
  assert sorted(in_full) == [cs, cs, 2 * cs, 2 * cs]  # two networks for residuals, and two for means and scales


def test_high_gradients_of_the_entropy_path_leave_out_the_last_layers(variables):
  model = build(CODEC, entropy_precision="high_gradients", transform_precision="default")
  y, z, found, last = jnp.zeros((1, 4, 4, CODEC.M)), jnp.zeros((1, 1, 1, CODEC.N)), [], 2 * CODEC.slice_channels

  def trace(params):  # without running the forward pass, whose products are not those of the gradient
    bits = lambda params: model.apply({"params": params}, y, z, 2.0, method="code").y_bits.sum()
    gradient = jax.make_jaxpr(jax.vjp(bits, params)[1])(1.0)
    found.extend(named(equations_on(gradient, "tpu"), "conv_general_dilated"))

  jax.eval_shape(trace, variables["params"])
  highest, high = ([each.outvars[0].aval.shape for each in found if each.params["precision"] == (precision,) * 2]
                   for precision in (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH))
  assert highest and high and len(highest) + len(high) == len(found)
  assert any(last in shape for shape in highest) and not any(shape[:2] == (5, 5) for shape in highest)


def test_rematerialization_changes_the_memory_and_not_the_gradient(x):
  variables = random_variables(BLOCKS)

  def compiled(remat):
    model = build(BLOCKS, remat=remat)

    def loss(v):  # of the transforms alone; test_slices.py has the scan over slices
      y, _ = model.apply(v, x[:1], method="analyze")
      return jnp.square(model.apply(v, y, method="synthesize") - x[:1]).sum()

    return jax.jit(jax.grad(loss)).lower(variables).compile(compiler_options={"xla_backend_optimization_level": 0})
  usual, again = compiled(False), compiled(True)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), usual(variables), again(variables))
  assert "checkpoint" not in usual.as_text() and "checkpoint" in again.as_text()


def test_a_fraction_of_a_quality_is_the_geometric_mean_of_its_gains(variables):
  compiled = jax.jit(lambda q: build(CODEC).apply(variables, q, method=lambda m, q: m._gain("log_gain", q)))
  gain = lambda q: np.asarray(compiled(q))
  np.testing.assert_allclose(gain(1.5)**2, gain(1.0) * gain(2.0), rtol=1e-6)
  np.testing.assert_array_equal(gain(np.float32([3.0, 1.0]))[1:], gain(1.0))


def test_a_missing_quality_and_a_size_that_is_no_multiple_are_refused(variables, x):
  with pytest.raises(ValueError, match=r"got no quality; a variable-rate codec wants one in 1\.\.3"):
    jax.eval_shape(build(CODEC).apply, variables, x)
  with pytest.raises(ValueError, match="60x128; height and width have to be multiples of 64"):
    jax.eval_shape(build(CODEC).apply, variables, x[:, :60], 1.0)


def test_only_live_weights_are_drawn_and_the_first_slices_start_at_the_right_size():
  live = jnp.arange(32) < 8
  kernel = Conv(64, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)), live)["params"]["kernel"]
  assert np.all(kernel[:, :, 8:] == 0)
  np.testing.assert_allclose(np.var(kernel[:, :, :8]), 1 / (9 * 8), rtol=0.1)


def test_a_strided_convolution_pads_both_sides_alike():
  x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
  out = Conv(1, 3, stride=2).apply({"params": {"kernel": jnp.arange(9.0).reshape(3, 3, 1, 1), "bias": jnp.zeros(1)}}, x)
  assert out[0, 0, 0, 0] == 4.0 and np.count_nonzero(out) == 1  # under the center of the kernel


def test_depthwise_convolution_is_a_grouped_convolution():
  x, kernel = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((2, 5, 6, 4), (3, 3, 1, 4)))
  grouped = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=4,
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))
  bias = np.arange(4, dtype=np.float32)
  np.testing.assert_allclose(depthwise_conv(x, kernel, bias), grouped + bias, atol=1e-5)


def test_pixel_shuffle_has_the_channel_order_of_pytorch():
  x = np.arange(8.0).reshape(1, 1, 1, 8)
  np.testing.assert_array_equal(pixel_shuffle(x)[0, :, :, 1], [[4, 5], [6, 7]])


@pytest.mark.parametrize("size, pad", [(5, 2), (4, 1), (3, 1), (2, 0)])
def test_a_transposed_convolution_adds_every_tap_where_pytorch_does(size, pad):
  normal = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)
  x, kernel, bias = normal(2, 3, 4, 5), normal(size, size, 5, 2), normal(2)
  whole = np.zeros((2, 6 + size, 8 + size, 2))
  for i in range(size):
    for j in range(size):
      whole[:, i:i + 6:2, j:j + 8:2] += x @ kernel[i, j]
  got = ConvTranspose(2, size).apply({"params": dict(kernel=kernel, bias=bias)}, x)
  np.testing.assert_allclose(got, whole[:, pad:pad + 6, pad:pad + 8] + bias, atol=1e-4)


@pytest.mark.parametrize("layer", [ConvTranspose(16, 5), ConvTranspose(16, 4), ConvTranspose(16, 2)])
def test_a_transposed_convolution_starts_with_outputs_of_the_size_of_its_inputs(layer):
  x = np.random.default_rng(0).normal(size=(1, 16, 16, 64)).astype(np.float32)
  out, _ = layer.init_with_output(jax.random.key(0), x)
  assert out.shape == (1, 32, 32, 16) and 0.8 < np.std(out) < 1.2


def test_rounding_passes_the_gradient_and_is_exact():
  x = jnp.array([0.5, 1.5, -2.3, 1e6 + 0.25])
  np.testing.assert_array_equal(ste_round(x), np.round(x))
  np.testing.assert_array_equal(jax.grad(lambda x: (3 * ste_round(x)).sum())(x), 3)


def test_the_lower_bound_lets_through_only_gradients_that_lead_back():
  x, bound = jnp.array([0.05, 0.05, 0.2]), 0.1
  _, vjp = jax.vjp(lambda x: lower_bound(x, bound), x)
  np.testing.assert_array_equal(vjp(jnp.array([1.0, -1.0, 1.0]))[0], [0, -1, 1])


def test_the_aux_loss_moves_the_quantiles_alone_and_the_rate_does_not(latents):
  model, variables = build(LIGHT), random_variables(LIGHT)
  grads = jax.device_get(jax.jit(jax.grad(lambda v: model.apply(v, method="aux_loss")))(variables)["params"])
  assert np.any(grads["z_prior"].pop("quantiles") != 0)
  assert all(np.all(g == 0) for g in jax.tree.leaves(grads))

  def rate(quantiles):
    params = variables["params"]
    v = {"params": dict(params, z_prior=dict(params["z_prior"], quantiles=quantiles))}
    out = model.apply(v, *latents, 2.0, rngs={"noise": jax.random.key(0)}, method="code")
    return out.y_bits.sum() + out.z_bits.sum()

  np.testing.assert_array_equal(jax.jit(jax.grad(rate))(variables["params"]["z_prior"]["quantiles"]), 0)


@pytest.mark.parametrize("fields, message", [
    (dict(M=10, num_slices=3), "M=10 does not divide into num_slices=3"),
    (dict(window_size=4), "odd number"),
    (dict(num_rates=-1), "num_rates=-1; wanted 0 or more"),
    (dict(N="64"), "got N='64'; wanted an integer")])
def test_a_bad_config_is_refused_with_what_came_and_what_was_wanted(fields, message):
  with pytest.raises(ValueError, match=message):
    CodecConfig(**fields)


def test_widths_that_the_transforms_cannot_be_built_of_are_refused():
  with pytest.raises(ValueError, match="wanted three widths"):
    build(CodecConfig(widths=(8, 8)))


def test_an_unknown_field_names_the_nearest_one():
  with pytest.raises(ValueError, match="no field 'num_slice'; the nearest is 'num_slices'"):
    CodecConfig.from_dict({"num_slice": 3})
