"""Tests of the programs that tests let NumPy evaluate, against those that XLA compiles."""
import jax
import jax.numpy as jnp
import numpy as np
from helpers.in_numpy import in_numpy

from mlic_jax.kernels.convolution import conv2d, conv_by_xla, depthwise_conv


def loops_and_indices(x, k):
  step = lambda carry, each: (carry * 0.5 + each, jnp.where(each > 0, carry, -each))
  last, stacked = jax.lax.scan(step, x[0], x, reverse=True)
  found = jax.lax.while_loop(lambda i: i < k, lambda i: i + 2, 0)
  chosen = jax.lax.switch(k, [jnp.sin, lambda t: t.sum(-1, keepdims=True) + t * 0, jnp.cos], last)
  shifted = jax.lax.dynamic_update_slice(x, x[k + 5][None], (k, 0))
  spread = jax.lax.pad(x, 0.5, ((-1, 2, 1), (0, -1, 0)))
  part = jax.lax.dynamic_slice(x, (k, 1), (2, 2))
  return chosen, stacked, found // 2, found % 2, shifted, part, spread, x[::-2].max()


def convolutions(x, kernels):
  for stride, kernel in enumerate(kernels, 1):
    x = jax.nn.softmax(conv2d(x, kernel, kernel.sum((0, 1, 2)), stride))
  return (depthwise_conv(x, kernels[0][:, :, :1], jnp.ones(4)) ** 3).sum()


def depthwise_gradient(x, kernel, dy):  # of XLA, whose convolution has groups in the batch
  conv = lambda kernel: conv_by_xla(x, kernel)
  return jax.linear_transpose(conv, kernel)(dy)


def rows_as_batch(x, kernel):
  layout = jax.lax.ConvDimensionNumbers((1, 0, 2, 3), (3, 2, 0, 1), (2, 3, 0, 1))
  return jax.lax.conv_general_dilated(x, kernel, (1, 2), ((-1, 2), (3, 0)), (2, 1), (1, 2), layout)


def test_numpy_computes_what_xla_computes():
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  draw = lambda seed, shift: shift + jax.random.normal(jax.random.key(seed), (3,))
  vmapped = jax.vmap(lambda x, at: (x[at], x.at[at].mul(2), x[:, at[0]]))
  rounded = lambda x: (jnp.round(4 * x), jax.lax.round(4 * x), jax.lax.erf(x), jax.lax.erfc(x))
  moved = lambda x: jax.lax.reshape(x, (6, 4), (2, 0, 1))
  for function, args in ((loops_and_indices, (normal(8, 3), np.int32(2))), (draw, (np.int32(1), normal(3))),
                         (jax.value_and_grad(convolutions, (0, 1)), (normal(2, 8, 6, 4), [normal(3, 3, 4, 4) / 6] * 2)),
                         (depthwise_gradient, (normal(2, 4, 6, 3), normal(3, 3, 1, 3), normal(2, 4, 6, 3))),
                         (rows_as_batch, (normal(4, 5, 6, 7), normal(3, 2, 4, 3))), (moved, (normal(2, 3, 4),)),
                         (vmapped, (normal(3, 5, 4), np.int32([[0, 3], [1, 1], [2, 0]]))),
                         (rounded, (np.arange(-3, 3, 0.125, dtype=np.float32),))):
    got, wanted = in_numpy(function)(*args), jax.jit(function)(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)
    assert {type(each) for each in jax.tree.leaves(got)} == {np.ndarray}
    assert [(each.shape, each.dtype) for each in jax.tree.leaves(got)] == [
        (each.shape, each.dtype) for each in jax.tree.leaves(wanted)]
