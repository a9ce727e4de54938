"""Products of channels with a matrix: their convolutions for TPUs against matrix products."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.in_numpy import in_numpy
from helpers.lowered_equations import equations_on, named

from mlic_jax.kernels.channel_product import ChannelProduct, channel_product, product_by_conv, product_by_einsum


def normal(seed, *shape):
  return np.float32(np.random.default_rng(seed).normal(size=shape))


def test_a_convolution_has_the_values_and_gradients_of_a_matrix_product():
  arguments = normal(0, 2, 3, 4, 5), normal(1, 6, 5), normal(2, 2, 3, 4, 6)
  form = ChannelProduct(tuple(each.shape for each in arguments), None)
  for index in range(3):
    others = arguments[:index] + arguments[index + 1:]
    by_conv, by_einsum = (in_numpy(partial(form._derivative, product, index))(*others)
                          for product in (product_by_conv, product_by_einsum))
    assert by_conv.shape == form.shapes[index]
    np.testing.assert_allclose(by_conv, by_einsum, rtol=1e-5, atol=1e-5)


def test_values_and_gradients_on_cpu_are_exactly_those_of_einsum():
  x, matrix, up = normal(0, 2, 8, 8, 16), normal(1, 12, 16), normal(2, 2, 8, 8, 12)
  gradient = lambda product: jax.jit(jax.value_and_grad(lambda *args: jnp.vdot(product(*args), up), (0, 1)))(x, matrix)
  jax.tree.map(np.testing.assert_array_equal, gradient(channel_product), gradient(product_by_einsum))


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_products_and_gradients_are_convolutions_on_tpus_alone(platform):
  gradient = jax.grad(lambda x, matrix: jnp.sum(channel_product(x, matrix)**2), (0, 1))
  equations = list(equations_on(jax.make_jaxpr(gradient)(normal(0, 1, 2, 2, 3), normal(1, 4, 3)), platform))
  convolutions, products = (len(named(equations, name)) for name in ("conv_general_dilated", "dot_general"))
  assert (convolutions, products) == ((3, 0) if platform == "tpu" else (0, 3))
