"""Tests of convolutions in forward mode, in higher orders and under vmap against the rules of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.kernels import winograd
from mlic_jax.kernels.convolution import conv2d, conv_by_xla, depthwise_conv


def normal(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


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
  assert_close(jax.jvp(own, primals, tangents), jax.jvp(plain, primals, tangents))
  y, linear = jax.linearize(own, *primals)
  assert_close((y, linear(*tangents)), jax.jvp(plain, primals, tangents))


@pytest.mark.parametrize("argument", [0, 1])
def test_the_forward_jacobian_is_that_of_reverse_mode(convolution, argument):
  own, plain, primals, _ = convolution
  small = [each[:1, :4, :2] if i == 0 else each for i, each in enumerate(primals)]
  assert_close(jax.jacfwd(own, argument)(*small), jax.jacrev(plain, argument)(*small))
  assert_close(jax.jacrev(own, argument)(*small), jax.jacfwd(plain, argument)(*small))


def energy(conv):
  return lambda args: jnp.sin(conv(*args)).sum()


def test_hessian_vector_products_agree_in_all_orders_of_differentiation(convolution):
  own, plain, primals, tangents = convolution
  forward_over_reverse = lambda f: jax.jvp(jax.grad(f), (primals,), (tangents,))[1]
  inner = lambda x, y: sum(jnp.vdot(a, b) for a, b in zip(x, y))
  reverse_over_forward = lambda f: jax.grad(lambda args: jax.jvp(f, (args,), (tangents,))[1])(primals)
  reverse_over_reverse = lambda f: jax.grad(lambda args: inner(jax.grad(f)(args), tangents))(primals)
  wanted = reverse_over_reverse(energy(plain))
  for product in (forward_over_reverse, reverse_over_forward, reverse_over_reverse):
    assert_close(product(energy(own)), wanted)


def test_a_third_derivative_is_that_of_xla(convolution):
  own, plain, primals, tangents = convolution
  along = lambda f: lambda args: jax.jvp(f, (args,), (tangents,))[1]
  third = lambda conv: jax.grad(along(along(energy(conv))))(primals)
  assert_close(third(own), third(plain))


@pytest.mark.parametrize("stacked", [(0,), (1,), (0, 1)], ids=["inputs", "kernels", "both"])
def test_a_vmapped_convolution_and_its_gradient_are_those_of_the_examples_apart(convolution, stacked):
  own, _, primals, _ = convolution
  axes = [i if i in stacked else None for i in range(len(primals))]  # axis 0 of inputs, axis 1 of kernels
  args = [jnp.stack([each, -2 * each, each + 1], axis) if axis is not None else each
          for each, axis in zip(primals, axes)]
  pick = lambda n: [jnp.take(each, n, axis) if axis is not None else each for each, axis in zip(args, axes)]
  wanted = [(own(*pick(n)), jax.grad(energy(own))(pick(n))) for n in range(3)]
  got = jax.vmap(lambda *args: (own(*args), jax.grad(energy(own))([*args])), axes)(*args)
  assert_close(got, jax.tree.map(lambda *each: jnp.stack(each), *wanted))
  # The gradient of what is shared is the sum over the examples.
  shared = jax.grad(lambda args: jax.vmap(lambda *args: energy(own)(args), axes)(*args).sum())(args)
  for i, axis in enumerate(axes):
    if axis is None:
      assert_close(shared[i], sum(gradient[i] for _, gradient in wanted))
    else:
      assert_close(shared[i], jnp.stack([gradient[i] for _, gradient in wanted], axis))


def test_the_platform_that_a_program_is_lowered_for_chooses_the_algorithm():
  """On CPU a depthwise convolution is a sum of products; XLA convolves on other platforms."""
  traced = jax.jit(depthwise_conv).trace(normal(0, 1, 4, 4, 3), normal(1, 3, 3, 1, 3), normal(2, 3))
  convolves = lambda platform: "convolution" in traced.lower(lowering_platforms=(platform,)).as_text()
  assert {platform: convolves(platform) for platform in ("cpu", "tpu", "cuda")} == dict(cpu=False, tpu=True, cuda=True)


def test_arguments_of_two_dtypes_are_refused():
  with pytest.raises(TypeError, match="float32.*bfloat16"):
    conv2d(normal(0, 1, 4, 4, 3), normal(1, 3, 3, 3, 4).astype(jnp.bfloat16), jnp.zeros(4))
