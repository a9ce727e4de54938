"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, matrix by matrix (Vyas et al., arXiv:2409.11321)."""

import collections
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

BETA1, BETA2, EPSILON = 0.95, 0.95, 1e-8   # those of the paper; BETA2 is that of the two covariances as well
REFRESH_EVERY = 10                         # steps from one basis to the next
SIDE_MAX = 1024                            # of a matrix; a longer side keeps its own basis, as Adam has it


class Group(NamedTuple):
  """What is kept of all matrices of one size, (batch, rows, columns) each."""
  mu: jax.Array                 # mean of the gradients
  nu: jax.Array                 # mean of their squares in the basis
  covariances: tuple[jax.Array, ...]  # of rows and of columns, (batch, side, side); () for a side above SIDE_MAX
  bases: tuple[jax.Array, ...]        # of each, eigenvectors as columns, those of large eigenvalues first


class SoapState(NamedTuple):
  """What is kept between steps."""
  count: jax.Array              # type: ignore[assignment]  # () int32; it hides tuple.count
  groups: Mapping[str, Group]   # by size, "rows x columns"


def scale_by_soap(refresh_every: int = REFRESH_EVERY, side_max: int = SIDE_MAX) -> optax.GradientTransformation:
  """Adam's step of a gradient that is turned into the eigenbases of its rows' and columns' covariances, turned back.

  Kernels (..., size, size, inputs, outputs) are (taps x inputs, outputs) matrices; leading axes, those of the slices,
  are matrices of their own. The first step finds the bases and changes nothing. Every `refresh_every` steps they
  follow the covariances by one iteration of subspace iteration."""
  def init(params):
    groups = {name: _group(batch, side_max) for name, batch in _by_size(params).items()}
    return SoapState(jnp.zeros((), jnp.int32), groups)

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    which = jnp.where(count == 1, 2, (count % refresh_every == 0).astype(jnp.int32))
    steps, groups = {}, {}
    for name, gradient in _by_size(updates).items():
      steps[name], groups[name] = _step(gradient, state.groups[name], count, which, side_max)
    return _as_kernels(steps, updates), SoapState(count, groups)

  return optax.GradientTransformation(init, update)


def _step(gradient: jax.Array, group: Group, count: jax.Array, which: jax.Array, side_max: int):
  sides = _turned_sides(gradient, side_max)
  turn = lambda x, transposed: _turn(x, group.bases, sides, transposed)
  first = count == 1  # when there is no basis yet: 0 is then added to averages of 0
  mu = BETA1 * group.mu + jnp.where(first, 0, 1 - BETA1) * gradient
  nu = BETA2 * group.nu + jnp.where(first, 0, 1 - BETA2) * turn(gradient, True)**2
  mean, square = (total / jnp.where(first, 1, 1 - beta**(count - 1))
                  for total, beta in ((turn(mu, True), BETA1), (nu, BETA2)))
  step = turn(mean / (jnp.sqrt(square) + EPSILON), False)
  covariances = tuple(BETA2 * before + (1 - BETA2) * _covariance(gradient, side)
                      for before, side in zip(group.covariances, sides))
  refresh = (lambda nu, _: (nu, group.bases), lambda nu, new: _follow(nu, group.bases, new, sides),
             lambda nu, new: (nu, tuple(jnp.linalg.eigh(each)[1][..., ::-1] for each in new)))
  nu, bases = jax.lax.switch(which, refresh, nu, covariances)
  return step, Group(mu, nu, covariances, bases)


def _follow(nu: jax.Array, bases: tuple[jax.Array, ...], covariances: tuple[jax.Array, ...], sides: tuple[int, ...]):
  """The bases after one product with the covariances, and nu in the new order of the eigenvalues."""
  found = []
  for basis, covariance, side in zip(bases, covariances, sides):
    product = covariance @ basis
    order = jnp.argsort(-jnp.sum(basis * product, axis=1), axis=-1)
    found.append(jnp.linalg.qr(jnp.take_along_axis(product, order[:, None, :], axis=2))[0])
    nu = jnp.take_along_axis(nu, jnp.expand_dims(order, 3 - side), axis=side)
  return nu, tuple(found)


def _turn(x: jax.Array, bases: tuple[jax.Array, ...], sides: tuple[int, ...], transposed: bool) -> jax.Array:
  """Into the bases (`transposed`), or back."""
  for basis, side in zip(bases, sides):
    basis = basis if transposed == (side == 2) else basis.swapaxes(1, 2)
    x = x @ basis if side == 2 else basis @ x
  return x


def _covariance(x: jax.Array, side: int) -> jax.Array:
  return x @ x.swapaxes(1, 2) if side == 1 else x.swapaxes(1, 2) @ x


def _turned_sides(batch: jax.Array, side_max: int) -> tuple[int, ...]:
  return tuple(side for side in (1, 2) if batch.shape[side] <= side_max)


def _group(batch: jax.Array, side_max: int) -> Group:
  squares = tuple(jnp.zeros((batch.shape[0], batch.shape[side], batch.shape[side]), batch.dtype)
                  for side in _turned_sides(batch, side_max))
  return Group(jnp.zeros_like(batch), jnp.zeros_like(batch), squares, squares)


def _by_size(kernels: Any) -> dict[str, jax.Array]:
  """All matrices of one size as one batch: a network has few sizes, and what is compiled grows with these."""
  groups = collections.defaultdict(list)
  for kernel in jax.tree.leaves(kernels):
    groups[_size(kernel)].append(kernel.reshape(-1, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]))
  return {size: jnp.concatenate(batch) for size, batch in groups.items()}


def _as_kernels(steps: Mapping[str, jax.Array], kernels: Any) -> Any:
  """Of `_by_size` the inverse; `kernels` has the shapes."""
  leaves, treedef = jax.tree.flatten(kernels)
  places = collections.defaultdict(list)
  for place, kernel in enumerate(leaves):
    places[_size(kernel)].append(place)
  for size, of_size in places.items():
    ends = np.cumsum([math.prod(leaves[place].shape[:-4]) for place in of_size])
    for place, step in zip(of_size, jnp.split(steps[size], ends[:-1])):
      leaves[place] = step.reshape(leaves[place].shape)
  return jax.tree.unflatten(treedef, leaves)


def _size(kernel: jax.Array) -> str:
  return f"{math.prod(kernel.shape[-4:-1])} x {kernel.shape[-1]}"
