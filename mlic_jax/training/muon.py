"""Muon: momentum whose step is made orthogonal, matrix by matrix (Jordan et al., 2024)."""

import collections
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Of the quintic whose repetition drives singular values towards 1 (Jordan et al., 2024), and how often it is repeated.
COEFFICIENTS, REPETITIONS = (3.4445, -4.7750, 2.0315), 5
BETA = 0.95
# The root mean square of a step over the learning rate: about that of Adam's, so that rates can be compared
# (Liu et al., "Muon is scalable for LLM training", 2025).
RMS = 0.2


class MuonState(NamedTuple):
  """What is kept between steps."""
  count: jax.Array  # type: ignore[assignment]  # () int32; it hides tuple.count
  mu: Any           # momentum, a tree like the parameters


def scale_by_muon(beta: float = BETA, rms: float = RMS) -> optax.GradientTransformation:
  """Nesterov momentum, made orthogonal: kernels (..., size, size, inputs, outputs) as (taps x inputs, outputs)
  matrices; leading axes, those of the slices, are matrices of their own. Steps have a root mean square of `rms`."""
  def init(params):
    return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.mu, updates)
    now, later = 1 - beta**count, 1 - beta**(count + 1)  # of averages that began at zero
    nesterov = jax.tree.map(lambda m, g: beta * m / later + (1 - beta) * g / now, mu, updates)
    return _orthogonal_steps(nesterov, rms), MuonState(count, mu)

  return optax.GradientTransformation(init, update)


def _orthogonal_steps(kernels: Any, rms: float) -> Any:
  """The step of each kernel of a tree. Matrices of one size, lying or standing, are one batch: a network has few sizes,
  and what is compiled grows with these."""
  leaves, treedef = jax.tree.flatten(kernels)
  matrices = [kernel.reshape(-1, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]) for kernel in leaves]
  stands = [matrix.shape[1] > matrix.shape[2] for matrix in matrices]
  turned = lambda place, matrix: matrix.swapaxes(1, 2) if stands[place] else matrix
  places, steps = collections.defaultdict(list), [None] * len(leaves)
  for place, matrix in enumerate(matrices):
    places[tuple(sorted(matrix.shape[1:]))].append(place)
  for (_, longer), of_size in places.items():
    batch = rms * longer**0.5 * orthogonalize(jnp.concatenate([turned(place, matrices[place]) for place in of_size]))
    ends = np.cumsum([len(matrices[place]) for place in of_size])
    for place, step in zip(of_size, jnp.split(batch, ends[:-1])):
      steps[place] = turned(place, step).reshape(leaves[place].shape)
  return jax.tree.unflatten(treedef, steps)


def orthogonalize(x: jax.Array) -> jax.Array:
  """(batch, rows, columns), not more rows than columns -> the same with singular values near 1, between 0.7 and 1.2.

  The quintic is odd, f(X) = P(X X^T) X, so a repetition of it is one product of symmetric matrices of the smaller side
  n times X. Where the larger side is 1.5 n or more, these are multiplied first, and X but twice: a third of the
  multiplications for the kernel of a 3x3 convolution."""
  a, b, c = COEFFICIENTS
  x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
  even = lambda gram: b * gram + c * gram @ gram

  def once(_, x):
    return a * x + even(x @ x.swapaxes(1, 2)) @ x

  def once_of_gram(_, state):
    total, factor, gram = state
    gram = factor @ gram @ factor
    factor = a * identity + even(gram)
    return factor @ total, factor, gram

  if 2 * x.shape[2] < 3 * x.shape[1]:
    return jax.lax.fori_loop(0, REPETITIONS, once, x)
  gram, identity = x @ x.swapaxes(1, 2), jnp.eye(x.shape[1])
  first = a * identity + even(gram)
  total, *_ = jax.lax.fori_loop(1, REPETITIONS, once_of_gram, (first, first, gram))
  return total @ x
