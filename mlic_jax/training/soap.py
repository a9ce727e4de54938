"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, matrix by matrix (Vyas et al., arXiv:2409.11321)."""

import collections
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

BETA1, BETA2, EPSILON = 0.95, 0.95, 1e-8   # as in the paper; BETA2 is also the decay of the covariances
REFRESH_EVERY = 10                         # steps between two updates of the bases
SIDE_MAX = 1024                            # a longer side of a matrix is not rotated, as in Adam


class Group(NamedTuple):
  """The state of all matrices of one size, as one batch (batch, rows, columns)."""
  mu: jax.Array                 # moving average of the gradients
  nu: jax.Array                 # moving average of their squares in the eigenbases
  covariances: tuple[jax.Array, ...]  # of rows and of columns, (batch, side, side); without sides above SIDE_MAX
  bases: tuple[jax.Array, ...]        # eigenvectors of each as columns, by falling eigenvalues


class SoapState(NamedTuple):
  """The state between steps."""
  count: jax.Array              # type: ignore[assignment]  # () int32; it hides tuple.count
  groups: Mapping[str, Group]   # by size, "rows x columns"


def scale_by_soap(refresh_every: int = REFRESH_EVERY, side_max: int = SIDE_MAX) -> optax.GradientTransformation:
  """Returns Adam in the eigenbases of the covariances of a gradient's rows and columns.

  The gradient is rotated into the eigenbases, and the step of Adam is rotated back. A kernel (..., size, size, inputs,
  outputs) is a matrix (taps * inputs, outputs); with leading axes, those of the slices, it is several matrices. The
  first step computes the bases and changes no parameter. Every `refresh_every` steps one subspace iteration moves the
  bases towards the eigenvectors of the current covariances."""
  def init(params):
    groups = {name: _group(batch, side_max) for name, batch in _by_size(params).items()}
    return SoapState(jnp.zeros((), jnp.int32), groups)

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    mode = jnp.where(count == 1, 2, (count % refresh_every == 0).astype(jnp.int32))  # 0 keep, 1 iterate, 2 compute
    steps, groups = {}, {}
    for name, gradient in _by_size(updates).items():
      steps[name], groups[name] = _step(gradient, state.groups[name], count, mode, side_max)
    return _as_kernels(steps, updates), SoapState(count, groups)

  return optax.GradientTransformation(init, update)


def _step(gradient: jax.Array, group: Group, count: jax.Array, mode: jax.Array, side_max: int):
  sides = _rotated_sides(gradient, side_max)
  rotate = lambda x, transposed: _rotate(x, group.bases, sides, transposed)
  first = count == 1  # there is no basis yet, so the averages stay 0
  mu = BETA1 * group.mu + jnp.where(first, 0, 1 - BETA1) * gradient
  nu = BETA2 * group.nu + jnp.where(first, 0, 1 - BETA2) * rotate(gradient, True)**2
  mean, square = (total / jnp.where(first, 1, 1 - beta**(count - 1))
                  for total, beta in ((rotate(mu, True), BETA1), (nu, BETA2)))
  step = rotate(mean / (jnp.sqrt(square) + EPSILON), False)
  covariances = tuple(BETA2 * before + (1 - BETA2) * _covariance(gradient, side)
                      for before, side in zip(group.covariances, sides))
  refresh = (lambda nu, _: (nu, group.bases), lambda nu, new: _iterate(nu, group.bases, new, sides),
             lambda nu, new: (nu, tuple(jnp.linalg.eigh(each)[1][..., ::-1] for each in new)))
  nu, bases = jax.lax.switch(mode, refresh, nu, covariances)
  return step, Group(mu, nu, covariances, bases)


def _iterate(nu: jax.Array, bases: tuple[jax.Array, ...], covariances: tuple[jax.Array, ...], sides: tuple[int, ...]):
  """Applies one subspace iteration to the bases; returns nu in the new order of the eigenvalues, and the bases."""
  found = []
  for basis, covariance, side in zip(bases, covariances, sides):
    product = covariance @ basis
    order = jnp.argsort(-jnp.sum(basis * product, axis=1), axis=-1)
    found.append(jnp.linalg.qr(jnp.take_along_axis(product, order[:, None, :], axis=2))[0])
    nu = jnp.take_along_axis(nu, jnp.expand_dims(order, 3 - side), axis=side)
  return nu, tuple(found)


def _rotate(x: jax.Array, bases: tuple[jax.Array, ...], sides: tuple[int, ...], transposed: bool) -> jax.Array:
  """Rotates into the bases (`transposed`), or back."""
  for basis, side in zip(bases, sides):
    basis = basis if transposed == (side == 2) else basis.swapaxes(1, 2)
    x = x @ basis if side == 2 else basis @ x
  return x


def _covariance(x: jax.Array, side: int) -> jax.Array:
  return x @ x.swapaxes(1, 2) if side == 1 else x.swapaxes(1, 2) @ x


def _rotated_sides(batch: jax.Array, side_max: int) -> tuple[int, ...]:
  return tuple(side for side in (1, 2) if batch.shape[side] <= side_max)


def _group(batch: jax.Array, side_max: int) -> Group:
  squares = tuple(jnp.zeros((batch.shape[0], batch.shape[side], batch.shape[side]), batch.dtype)
                  for side in _rotated_sides(batch, side_max))
  return Group(jnp.zeros_like(batch), jnp.zeros_like(batch), squares, squares)


def _by_size(kernels: Any) -> dict[str, jax.Array]:
  """Batches all matrices of one size: a network has few sizes, and the compiled program grows with their number."""
  groups = collections.defaultdict(list)
  for kernel in jax.tree.leaves(kernels):
    groups[_size(kernel)].append(kernel.reshape(-1, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]))
  return {size: jnp.concatenate(batch) for size, batch in groups.items()}


def _as_kernels(steps: Mapping[str, jax.Array], kernels: Any) -> Any:
  """Inverts `_by_size`; `kernels` has the shapes."""
  leaves, treedef = jax.tree.flatten(kernels)
  by_size = collections.defaultdict(list)
  for i, kernel in enumerate(leaves):
    by_size[_size(kernel)].append(i)
  for size, indices in by_size.items():
    ends = np.cumsum([math.prod(leaves[i].shape[:-4]) for i in indices])
    for i, step in zip(indices, jnp.split(steps[size], ends[:-1])):
      leaves[i] = step.reshape(leaves[i].shape)
  return jax.tree.unflatten(treedef, leaves)


def _size(kernel: jax.Array) -> str:
  return f"{math.prod(kernel.shape[-4:-1])} x {kernel.shape[-1]}"
