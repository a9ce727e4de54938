"""Tests of the convolutions for CPU against those of XLA: equal results, with similar rounding errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lowered_equations import equations_on, products

from mlic_jax.kernels import convolution, winograd
from mlic_jax.kernels.convolution import conv2d, conv_by_xla, depthwise_conv, matmul_precision
from mlic_jax.kernels.padding import zero_pad

# (B, H, W, C), size, stride: one block, several images a block, several blocks an image, rows longer than a block.
CASES = [((1, 8, 8, 3), 3, 1), ((8, 4, 4, 5), 1, 1), ((2, 12, 6, 3), 5, 1), ((1, 4, 40, 2), 3, 1), ((2, 6, 5, 3), 3, 1),
         ((2, 8, 8, 3), 3, 2), ((1, 12, 6, 4), 1, 2), ((3, 16, 4, 2), 5, 2), ((2, 8, 6, 3), 2, 2),
         ((1, 12, 8, 2), 4, 2)]


def plain(x, kernel, bias, stride):
  return conv_by_xla(x, kernel, stride) + bias


@pytest.mark.parametrize("shape, size, stride", CASES)
def test_values_and_gradients_are_those_of_xla(monkeypatch, shape, size, stride):
  monkeypatch.setattr(convolution, "BLOCK", 32)
  monkeypatch.setattr(winograd, "CHANNELS_MIN", 1)
  monkeypatch.setattr(winograd, "POSITIONS_MIN", 1)
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  args = normal(*shape), normal(size, size, shape[-1], 7), normal(7)
  weights = normal(*jax.eval_shape(lambda *args: conv2d(*args, stride), *args).shape)
  wanted, got = jax.jit(lambda args: [
      jax.value_and_grad(lambda args, conv=conv: (weights * conv(*args, stride)).sum())(args)
      for conv in (plain, conv2d)])(args)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), wanted, got)


@pytest.mark.parametrize("size", [3, 5])
def test_values_and_gradients_of_a_depthwise_convolution_are_those_of_xla(size):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args, weights = (normal(2, 4, 6, 3), normal(size, size, 1, 3), normal(3)), normal(2, 4, 6, 3)
  grouped = lambda x, kernel, bias: bias + jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3)
  wanted, got = jax.jit(lambda args: [
      jax.value_and_grad(lambda args, conv=conv: (weights * conv(*args)).sum())(args)
      for conv in (grouped, depthwise_conv)])(args)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), wanted, got)


@pytest.mark.parametrize("rows, columns", [((1, 3), (0, 0)), ((0, 0), (2, 2)), ((1, 0), (0, 2))])
def test_zeros_around_are_those_of_one_pad(rows, columns):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 5, 4, 3)), jnp.float32)
  padded, transposed = jax.vjp(lambda x: zero_pad(x, rows, columns), x)
  np.testing.assert_array_equal(padded, np.pad(x, ((0, 0), (0, 0), rows, columns, (0, 0))))
  np.testing.assert_array_equal(transposed(padded)[0], x)


def test_a_strided_convolution_pads_on_both_sides():
  x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0].set(1)
  kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
  np.testing.assert_array_equal(conv2d(x, kernel, jnp.zeros(1), 2)[0, ..., 0], [[4, 0], [0, 0]])


@pytest.mark.parametrize("size, first", [(2, 0), (4, 1)])
def test_a_kernel_of_even_size_halves_an_image_from_its_first_pixel_on(size, first):
  x = jnp.zeros((1, 6, 8, 1)).at[0, 2, 4].set(1)
  kernel = 1 + jnp.arange(float(size * size)).reshape(size, size, 1, 1)
  out = conv2d(x, kernel, jnp.zeros(1), 2)[0, ..., 0]
  assert out.shape == (3, 4) and out[1, 2] == kernel[first, first, 0, 0]


def test_half_the_multiplications_cost_less_than_threefold_rounding_errors():
  rng = np.random.default_rng(0)
  x, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 64, 16, 96), (3, 3, 96, 64)))
  padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  exact = sum(padded[:, i:i + 64, j:j + 16] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3))
  error = lambda conv: np.sqrt(np.mean((conv(x, kernel, np.zeros(64, np.float32), 1) - exact)**2))
  assert winograd.is_suitable(x, kernel.shape)
  assert 0 < error(conv2d) < 3 * error(plain)


@pytest.mark.parametrize("name, value, of_gradient", [
    ("highest", "HIGHEST", "HIGHEST"), ("high_gradients", "HIGHEST", "HIGH"), ("high", "HIGH", "HIGH")])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_matmul_precision_may_have_another_one_for_gradients(name, value, of_gradient, depthwise):
  x, kernel = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 1 if depthwise else 8, 8))
  conv = lambda x, kernel: (depthwise_conv if depthwise else conv2d)(x, kernel, jnp.zeros(8))
  of = lambda program, *args: {each.name for each in products(equations_on(jax.make_jaxpr(program)(*args), "tpu"))}
  with matmul_precision(name):
    out, gradient = jax.vjp(conv, x, kernel)
    assert of(conv, x, kernel) == {value}
  assert of(gradient, out) == {of_gradient}
  assert products(equations_on(jax.make_jaxpr(conv)(x, kernel), "tpu")) == {None}
