"""Tests of convolutions in forward mode, in higher orders and under vmap against the rules of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.in_numpy import in_numpy

from mlic_jax.kernels import winograd
from mlic_jax.kernels.convolution import conv2d, conv_by_xla, depthwise_conv


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.float32(np.random.default_rng(seed).normal(size=shape))


# name: (the convolution, the same by XLA, shapes of its arguments)
CONVOLUTIONS = {
    "3x3": (conv2d, lambda x, kernel, bias: conv_by_xla(x, kernel) + bias, ((2, 8, 6, 3), (3, 3, 3, 4), (4,))),
    "strided": (lambda *args: conv2d(*args, 2), lambda x, kernel, bias: conv_by_xla(x, kernel, 2) + bias,
                ((2, 8, 6, 3), (5, 5, 3, 4), (4,))),
    "halving": (lambda *args: conv2d(*args, 2), lambda x, kernel, bias: conv_by_xla(x, kernel, 2) + bias,
                ((2, 8, 6, 3), (2, 2, 3, 4), (4,))),
    "depthwise": (depthwise_conv, lambda x, kernel, bias: conv_by_xla(x, kernel) + bias,
                  ((2, 8, 6, 3), (3, 3, 1, 3), (3,)))}


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request, monkeypatch):
  """The convolution, the same by XLA, arguments and tangents."""
  monkeypatch.setattr(winograd, "CHANNELS_MIN", 1)
  monkeypatch.setattr(winograd, "POSITIONS_MIN", 1)
  own, plain, shapes = CONVOLUTIONS[request.param]
  yield own, plain, *([normal(seed + i, *shape) for i, shape in enumerate(shapes)] for seed in (0, 10))


def assert_close(got, wanted):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got, wanted)


def test_a_tangent_goes_through_a_convolution(convolution):
  own, plain, primals, tangents = convolution

  @in_numpy
  def results(primals, tangents):
    y, linear = jax.linearize(own, *primals)
    return jax.jvp(own, primals, tangents), (y, linear(*tangents)), jax.jvp(plain, primals, tangents)

  tangent, linearized, wanted = results(primals, tangents)
  assert_close(tangent, wanted)
  assert_close(linearized, wanted)


@pytest.mark.parametrize("argument", [0, 1])
def test_the_forward_jacobian_is_that_of_reverse_mode(convolution, argument):
  own, plain, primals, _ = convolution
  small = [each[:1, :4, :2] if i == 0 else each for i, each in enumerate(primals)]
  modes = (jax.jacrev, plain), (jax.jacrev, own), (jax.jacfwd, own)
  wanted, reverse, forward = in_numpy(lambda *args: [mode(conv, argument)(*args) for mode, conv in modes])(*small)
  assert_close(reverse, wanted)
  assert_close(forward, wanted)


def energy(conv):
  return lambda args: jnp.sin(conv(*args)).sum()


def test_hessian_vector_products_agree_in_all_orders_of_differentiation(convolution):
  own, plain, primals, tangents = convolution
  inner = lambda x, y: sum(jnp.vdot(a, b) for a, b in zip(x, y))
  forward_over_reverse = lambda f, primals, tangents: jax.jvp(jax.grad(f), (primals,), (tangents,))[1]
  reverse_over_forward = lambda f, primals, tangents: jax.grad(
      lambda args: jax.jvp(f, (args,), (tangents,))[1])(primals)
  reverse_over_reverse = lambda f, primals, tangents: jax.grad(lambda args: inner(jax.grad(f)(args), tangents))(primals)
  orders = ((reverse_over_reverse, plain), (reverse_over_reverse, own), (forward_over_reverse, own),
            (reverse_over_forward, own))
  wanted, *products = in_numpy(lambda *args: [order(energy(conv), *args) for order, conv in orders])(primals, tangents)
  for product in products:
    assert_close(product, wanted)


def test_a_third_derivative_is_that_of_xla(convolution):
  own, plain, primals, tangents = convolution

  @in_numpy
  def third(primals, tangents):
    along = lambda f: lambda args: jax.jvp(f, (args,), (tangents,))[1]
    return [jax.grad(along(along(energy(conv))))(primals) for conv in (own, plain)]

  assert_close(*third(primals, tangents))


@pytest.mark.parametrize("stacked", [(0,), (1,), (0, 1)], ids=["inputs", "kernels", "both"])
def test_a_vmapped_convolution_and_its_gradient_are_those_of_the_examples_apart(convolution, stacked):
  own, _, primals, _ = convolution
  axes = [i if i in stacked else None for i in range(len(primals))]  # axis 0 of inputs, axis 1 of kernels
  args = [np.stack([each, -2 * each, each + 1], axis) if axis is not None else each
          for each, axis in zip(primals, axes)]
  pick = lambda n: [np.take(each, n, axis) if axis is not None else each for each, axis in zip(args, axes)]
  apart = in_numpy(lambda *args: (own(*args), jax.grad(energy(own))([*args])))
  wanted = [apart(*pick(n)) for n in range(3)]

  @in_numpy
  def results(*args):
    # The gradient of what is shared is the sum over the examples.
    total = lambda args: jax.vmap(lambda *args: energy(own)(args), axes)(*args).sum()
    return jax.vmap(lambda *args: (own(*args), jax.grad(energy(own))([*args])), axes)(*args), jax.grad(total)([*args])

  got, shared = results(*args)
  assert_close(got, jax.tree.map(lambda *each: np.stack(each), *wanted))
  for i, axis in enumerate(axes):
    if axis is None:
      assert_close(shared[i], sum(gradient[i] for _, gradient in wanted))
    else:
      assert_close(shared[i], np.stack([gradient[i] for _, gradient in wanted], axis))


def test_the_platform_that_a_program_is_lowered_for_chooses_the_algorithm():
  """On CPU a depthwise convolution is a sum of products; XLA convolves on other platforms."""
  traced = jax.jit(depthwise_conv).trace(normal(0, 1, 4, 4, 3), normal(1, 3, 3, 1, 3), normal(2, 3))
  convolves = lambda platform: "convolution" in traced.lower(lowering_platforms=(platform,)).as_text()
  assert {platform: convolves(platform) for platform in ("cpu", "tpu", "cuda")} == dict(cpu=False, tpu=True, cuda=True)


def test_arguments_of_two_dtypes_are_refused():
  with pytest.raises(TypeError, match="float32.*bfloat16"):
    conv2d(normal(0, 1, 4, 4, 3), normal(1, 3, 3, 3, 4).astype(jnp.bfloat16), jnp.zeros(4))
