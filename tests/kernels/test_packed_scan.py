"""Tests of the packed scan and its gradient against jax.lax.scan."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.in_numpy import in_numpy

from mlic_jax.kernels.packed_scan import Vectors, packed_scan

COUNT = 4


@pytest.fixture(scope="module")
def arrays():
  """(shared, carry, params, inputs): convolutions, biases and matrices; inputs of floats, integers and flags."""
  draw = lambda i, *shape: np.float32(0.3 * np.random.default_rng(i).normal(size=shape))
  params = dict(kernel=draw(0, COUNT, 3, 3, 5, 5), bias=draw(1, COUNT, 5), matrix=draw(2, COUNT, 5, 5))
  arrived = np.arange(COUNT)[:, None] < np.array([2, 3])
  inputs = np.arange(COUNT, dtype=np.int32), draw(5, COUNT, 2, 4, 4, 5), None, arrived
  return draw(3, 2, 4, 4, 5), draw(4, 2, 4, 4, 5), params, inputs


def body(shared, carry, params, inputs):
  k, y, _, arrived = inputs
  conv = jax.lax.conv_general_dilated(carry, params["kernel"], (1, 1), "SAME",
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  out = jnp.tanh(conv + params["bias"]) + jnp.where(k > 1, shared, 0) * y
  out = jnp.where(arrived[:, None, None, None], out @ params["matrix"], y)
  return out, (out * shared, y * y)


def plain(shared, carry, params, inputs):
  return jax.lax.scan(lambda carry, each: body(shared, carry, *each), carry, (params, inputs))


@pytest.mark.parametrize("remat", [False, True])
def test_results_and_gradients_are_those_of_a_scan(arrays, remat):
  shared, carry, params, inputs = arrays
  each = jax.checkpoint(body) if remat else body

  def loss(scan):
    def of_floats(shared, carry, params, y):
      done = scan(shared, carry, params, (inputs[0], y, *inputs[2:]))
      return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(done)), done
    return in_numpy(jax.value_and_grad(of_floats, argnums=(0, 1, 2, 3), has_aux=True))(shared, carry, params, inputs[1])

  expected, found = loss(plain), loss(lambda *args: packed_scan(each, *args))
  assert jax.tree.structure(expected) == jax.tree.structure(found)
  for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
    np.testing.assert_allclose(b, a, rtol=2e-5, atol=1e-5)
  # The same operations with and without a gradient. Two compiled programs may fuse them differently on some processors.
  of_floats = lambda shared, carry, params: packed_scan(each, shared, carry, params, inputs)
  without_gradient = in_numpy(of_floats)(shared, carry, params)
  with_gradient = in_numpy(lambda *args: jax.vjp(of_floats, *args)[0])(shared, carry, params)
  jax.tree.map(np.testing.assert_array_equal, without_gradient, with_gradient)


def test_the_gradient_keeps_no_array_that_an_iteration_reads_anyway():
  matrices, carry, shared = (np.ones(shape, np.float32) for shape in ((COUNT, 64, 64), (2, 64), (99, 64)))
  body = lambda shared, carry, matrix, _: (jnp.tanh(carry @ matrix) + (shared @ matrix)[:2], None)
  run = lambda shared, matrices: packed_scan(body, shared, carry, matrices, jnp.arange(COUNT))[0].sum()
  trace = jax.make_jaxpr(jax.grad(run, argnums=(0, 1)))(shared, matrices)
  forward, backward = (each for each in trace.eqns if each.primitive.name == "scan")
  # The last carry, and for each iteration its first one and what tanh gave.
  assert sum(np.prod(each.aval.shape) for each in forward.outvars) <= carry.size + COUNT * 3 * carry.size
  assert {each.aval.shape for each in backward.outvars} == {carry.shape, shared.shape, (COUNT, 64 * 64)}


def test_a_tree_is_one_vector_for_each_dtype_and_comes_back():
  count = lambda n: np.arange(n, dtype=np.float32)
  tree = dict(kernel=count(24).reshape(1, 2, 3, 4), flags=np.array([True, False]), k=np.int32(3), bias=count(4))
  vectors = Vectors.of(tree, outputs_first=True)
  packed = in_numpy(vectors.pack)(tree)
  assert {dtype: len(vector) for dtype, vector in packed.items()} == {"float32": 28, "bool": 2, "int32": 1}
  jax.tree.map(np.testing.assert_array_equal, in_numpy(vectors.unpack)(packed), tree)
  stacked = jax.tree.map(lambda vector: np.stack([np.zeros_like(vector), vector]), packed)
  jax.tree.map(np.testing.assert_array_equal, in_numpy(vectors.unpack_row)(stacked, np.int32(1)), tree)
  # The kernel lies as cuDNN reads it, with the outputs first.
  np.testing.assert_array_equal(packed["float32"][4:10], tree["kernel"][..., 0].reshape(-1))
