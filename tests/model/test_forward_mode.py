"""Tests of tangents and Hessians of a codec: jax.jvp, jax.linearize, forward over reverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables
from helpers.in_numpy import in_numpy

from mlic_jax.config import CodecConfig
from mlic_jax.metrics import MS_SSIM_MIN_SIDE, ms_ssim
from mlic_jax.model import contexts, transforms
from mlic_jax.model.activation import gelu
from mlic_jax.model.layers import GDN
from mlic_jax.model.lazy_params import without_initializers
from mlic_jax.model.mlic import build
from mlic_jax.model.quantizers import NOISE, Quantizer
from mlic_jax.model.slices import Slices
from mlic_jax.model.softmax import softmax
from mlic_jax.model.straight_through import lower_bound

FEW_LAYERS = CodecConfig(N=4, M=8, num_slices=2, transforms="helpers.light_transforms", hyper_widths=(4, 4),
                         entropy_widths=(), lrp_widths=(), contexts=())  # all contexts are below
UNQUANTIZED = Quantizer(lambda residual, _: (residual, residual))  # a smooth function of everything


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inner(a, b) -> float:
  return float(sum(np.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))


@pytest.mark.parametrize("inverse", [False, True])
def test_tangents_of_gdn_are_finite_differences_and_agree_with_reverse_mode(inverse):
  gdn, x = GDN(inverse=inverse), normal(0, 1, 4, 4, 6)
  init = in_numpy(gdn.init)(jax.random.key(0), x)
  params = jax.tree.map(lambda p: np.asarray(p) + 0.05 * np.abs(normal(1, *p.shape)), init)
  run, primals = lambda args: gdn.apply(*args), (params, x)
  tangents = jax.tree.map(lambda p: normal(2, *p.shape), primals)
  moved = lambda step: run(jax.tree.map(lambda p, t: p + step * t, primals, tangents))
  cotangent = normal(3, *x.shape)
  difference, tangent, (pulled,) = in_numpy(lambda primals: (
      moved(1e-3) - moved(-1e-3), jax.jvp(run, (primals,), (tangents,))[1],
      jax.vjp(run, primals)[1](cotangent)))(primals)
  np.testing.assert_allclose(tangent, difference / 2e-3, rtol=0.01, atol=0.01)
  np.testing.assert_allclose(inner(pulled, tangents), inner(cotangent, tangent), rtol=1e-4)


def test_the_second_derivative_of_gelu_is_that_of_the_definition():
  x = np.linspace(-5, 5, 101, dtype=np.float32)
  wide = x.astype(np.float64)
  exact = (2 - wide**2) * np.exp(-wide**2 / 2) / np.sqrt(2 * np.pi)
  along = lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
  for second in (along(jax.grad(lambda x: gelu(x).sum())), along(along(gelu))):
    np.testing.assert_allclose(in_numpy(second)(x), exact, atol=2e-6)


def test_the_second_derivative_of_softmax_is_that_of_jax():
  x = normal(0, 3, 5)
  second, wanted = (in_numpy(jax.hessian(lambda x, f=f: jnp.sin(f(x)).sum()))(x) for f in (softmax, jax.nn.softmax))
  np.testing.assert_allclose(second, wanted, atol=1e-6)
  assert np.abs(wanted).max() > 0.01


def test_below_its_bound_a_lower_bound_has_the_tangent_of_max():
  x = np.float32([0.05, 0.1, 0.2])
  tangents = lambda x: jax.jvp(lambda x: lower_bound(x, 0.1), (x,), (jnp.ones(3),))[1]
  np.testing.assert_array_equal(in_numpy(tangents)(x), [0, 1, 1])
  tangent = lambda x: jax.jvp(lambda x: lower_bound(x, 0.1), (x,), (3.0,))[1]
  np.testing.assert_array_equal(in_numpy(jax.vmap(tangent))(x), [0, 3, 3])
  # The gradient of -bounded**2 lifts what is below the bound; its own derivative there follows the cotangent.
  gradient = jax.grad(lambda x: -jnp.square(lower_bound(x, 0.1)).sum())
  np.testing.assert_allclose(in_numpy(gradient)(x), [-0.2, -0.2, -0.4])
  np.testing.assert_allclose(in_numpy(jax.jacfwd(gradient))(x), np.diag([0.0, -2.0, -2.0]))


@functools.cache
def codec_derivatives():
  """Variables of a codec, a direction, and a function of both.

  It returns the gradient, the tangent of the loss, and the Hessian times the direction."""
  params, x = random_variables(FEW_LAYERS), np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)

  def loss(variables):
    out = build(FEW_LAYERS, scan_unroll=1).apply(variables, x, quantizer=UNQUANTIZED)
    return 100 * jnp.square(out.x_hat - x).mean() + (out.y_bits.sum() + out.z_bits.sum()) / x.size

  def derivatives(params, direction):
    gradient, product = jax.jvp(jax.grad(loss), (params,), (direction,))
    return gradient, jax.jvp(loss, (params,), (direction,))[1], product

  direction = jax.tree.map(lambda p: normal(p.size, *p.shape) * (np.std(p) + 0.01), params)
  return params, direction, in_numpy(derivatives)


def test_the_tangent_of_a_whole_codec_is_the_scalar_product_with_its_gradient():
  params, direction, derivatives = codec_derivatives()
  gradient, tangent, _ = derivatives(params, direction)
  assert abs(tangent) > 0.01
  np.testing.assert_allclose(tangent, inner(gradient, direction), rtol=1e-3)


def test_a_hessian_vector_product_of_a_whole_codec_is_the_difference_of_two_gradients():
  params, direction, derivatives = codec_derivatives()
  moved = lambda step: derivatives(jax.tree.map(lambda p, d: p + step * d, params, direction), direction)[0]
  _, _, product = derivatives(params, direction)
  error = jax.tree.map(lambda found, above, below: found - (above - below) / 2e-3, product, moved(1e-3), moved(-1e-3))
  assert inner(error, error) < 0.01**2 * inner(product, product) > 0


# Traced only: a rule that is missing raises a TypeError while tracing.

def trace_forward_over_reverse(loss, *args) -> None:
  hessian_times = lambda args: jax.jvp(jax.grad(lambda args: loss(*args)), (args,), (args,))
  jax.eval_shape(hessian_times, args)


ONE_BLOCK = dict(elic=("BOTTLENECKS", 1), hpcm=("BLOCKS", (1, 1, 1)), unshuffled=("DEPTHS", (1, 1)))


@pytest.mark.parametrize("name", transforms.available())
def test_every_transform_can_be_differentiated_forward_over_reverse(monkeypatch, name):
  """With one block in place of several equal ones."""
  if name in ONE_BLOCK:
    monkeypatch.setattr(transforms.find(name), *ONE_BLOCK[name])
  fields = dict(hpcm=dict(widths=(8, 8, 8)), token_mixing=dict(options=dict(token_blocks=1)),
                unshuffled=dict(options=dict(token_expansion=1)))
  config = CodecConfig(N=4, M=8, num_slices=2, transforms=name, contexts=(), **fields.get(name, {}))
  chosen = transforms.find(name)
  for transform, shape in ((chosen.Analysis(config), (1, 64, 64, 3)), (chosen.Synthesis(config), (1, 4, 4, config.M))):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with without_initializers():
      params = jax.eval_shape(transform.init, jax.random.key(0), x)
    trace_forward_over_reverse(lambda params, x: jnp.square(transform.apply(params, x)).sum(), params, x)


@functools.cache
def shapes_of_context(name: str):
  """A context of slices of 8 channels with all its options, its inputs and its parameters."""
  options = {option: True for option in getattr(contexts.find(name), "OPTIONS", {})}
  context = contexts.make_context(name, CodecConfig(M=24, num_slices=3, contexts=(name,), options=options))
  arrays = [jax.ShapeDtypeStruct((1, 4, 4, n), jnp.float32) for n in (48, 24, 8, 8)]
  init = lambda *arrays: context.init(jax.random.key(0), inputs_of(2, np, *arrays))
  with without_initializers():
    return context, arrays, jax.eval_shape(init, *arrays)


def inputs_of(k, xp, hyper, decoded, previous, anchor) -> contexts.ContextInputs:
  return contexts.ContextInputs(k, hyper, decoded, xp.arange(24) < 8 * k, previous, anchor)


# A loop over slices traces their indices, an unrolled one knows them. Some contexts are other programs then.
@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("name", contexts.available())
def test_every_context_can_be_differentiated_forward_over_reverse(name, is_traced):
  (context, arrays, params), xp = shapes_of_context(name), jnp if is_traced else np

  def trace(k):
    energy = lambda params, *arrays: jnp.square(context.apply(params, inputs_of(k, xp, *arrays))).sum()
    trace_forward_over_reverse(energy, params, *arrays)

  if is_traced:
    jax.eval_shape(trace, jax.ShapeDtypeStruct((), jnp.int32))
  else:
    trace(2)


def test_the_scan_over_slices_can_be_differentiated_forward_over_reverse():
  slices = Slices(FEW_LAYERS)
  hyper, y = (jax.ShapeDtypeStruct((1, 4, 4, n), jnp.float32) for n in (16, 8))
  with without_initializers():
    params = jax.eval_shape(lambda *arrays: slices.init(jax.random.key(0), *arrays, method="scan"), hyper, y)
  bits = lambda params, hyper, y: slices.apply(params, hyper, y, NOISE, y, method="scan").bits.sum()
  trace_forward_over_reverse(bits, params, hyper, y)


def test_ms_ssim_can_be_differentiated_forward_over_reverse():
  x = jax.ShapeDtypeStruct((1, MS_SSIM_MIN_SIDE, MS_SSIM_MIN_SIDE, 3), jnp.float32)
  trace_forward_over_reverse(lambda x, y: ms_ssim(x, y).sum(), x, x)
