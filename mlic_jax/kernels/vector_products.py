"""Products over short axes, as sums of products of vectors on TPUs.

A TPU computes a product of 25x16 with 16x25 in a matrix unit of 128x128, and stores its result in vectors of 8x128.
With the axes of many such products last, all of a vector is in use. XLA would still read and write every partial sum:
its reduction over the first axis takes seven times the cycles of the sums here.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp

from mlic_jax.kernels.layouts import stored
from mlic_jax.kernels.multilinear import Form


def contract(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns the sum over i of x[i, a, ...] y[i, b, ...], (n, A, ...), (n, B, ...) -> (A, B, ...).

  The matmul precision has no effect on it."""
  return Contraction((x.shape, y.shape, (x.shape[1], y.shape[1], *x.shape[2:])))(x, y)


def total(x: jax.Array) -> jax.Array:
  """Returns the sum over the first axis, (n, ...) -> (...)."""
  return Total((x.shape, x.shape[1:]))(x)


@dataclasses.dataclass(frozen=True)
class Contraction(Form):
  """<contract(x, y), z> of x (n, A, ...), y (n, B, ...), z (A, B, ...)."""

  def derivative(self, index, on_cpu, *others):
    x, y = others
    if index == 0:
      x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
    elif index == 1:
      x = x.swapaxes(0, 1)
    return stored(functools.reduce(operator.add, (a[:, None] * b[None] for a, b in zip(stored(x), stored(y)))))


@dataclasses.dataclass(frozen=True)
class Total(Form):
  """<total(x), y> of x (n, ...), y (...)."""

  def derivative(self, index, on_cpu, *others):
    (other,) = others
    if index == 0:
      return jnp.broadcast_to(other, self.shapes[0])
    return stored(functools.reduce(operator.add, stored(other)))
