"""Products over short axes: values and derivatives of sums of products of vectors, against einsum."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lowered_equations import equations_on

from mlic_jax.kernels.vector_products import contract, total

X, Y = (np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        for seed, shape in enumerate([(3, 2, 4, 5), (3, 6, 4, 5)]))
BY_EINSUM = {contract: lambda x, y: jnp.einsum("ia...,ib...->ab...", x, y), total: lambda x: jnp.einsum("i...->...", x)}
ARGUMENTS = {contract: (X, Y), total: (X,)}


@pytest.mark.parametrize("function", [contract, total])
def test_values_and_derivatives_of_both_modes_are_those_of_einsum(function):
  def derivatives(function, *args):
    bent = lambda *args: jnp.sin(function(*args))  # the second derivative by each argument is not zero either
    tangents = tuple(jnp.cos(x) for x in args)
    gradient = jax.grad(lambda *args: bent(*args).sum(), tuple(range(len(args))))
    return jax.jvp(bent, args, tangents), jax.jvp(gradient, args, tangents)

  found, wanted = (jax.jit(lambda *args, f=each: derivatives(f, *args))(*ARGUMENTS[function])
                   for each in (function, BY_EINSUM[function]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_no_gradient_has_a_reduction_or_a_product_of_matrices(platform):
  gradient = lambda x, y: jax.vjp(lambda x, y: total(contract(x, y)), x, y)[1](Y[0])
  names = {each.primitive.name for each in equations_on(jax.make_jaxpr(gradient)(X, Y), platform)}
  assert "mul" in names and not names & {"reduce_sum", "dot_general"}
