"""Muon: momentum whose step is made orthogonal, matrix by matrix (Jordan et al., 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Of the quintic whose repetition drives singular values towards 1 (Jordan et al., 2024), and how often it is repeated.
COEFFICIENTS, REPETITIONS = (3.4445, -4.7750, 2.0315), 5
BETA = 0.95
# The root mean square of a step over the learning rate: about that of Adam's, so that rates can be compared
# (Liu et al., "Muon is scalable for LLM training", 2025).
RMS = 0.2


class MuonState(NamedTuple):
  """What is kept between steps."""
  count: jax.Array  # () int32
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
    return jax.tree.map(lambda kernel: _step(kernel, rms), nesterov), MuonState(count, mu)

  return optax.GradientTransformation(init, update)


def _step(kernel: jax.Array, rms: float) -> jax.Array:
  matrices = kernel.reshape(-1, kernel.shape[-4] * kernel.shape[-3] * kernel.shape[-2], kernel.shape[-1])
  return rms * max(matrices.shape[1:])**0.5 * orthogonalize(matrices).reshape(kernel.shape)


def orthogonalize(x: jax.Array) -> jax.Array:
  """(batch, rows, columns) -> the same with singular values near 1, between 0.7 and 1.2.

  The quintic is odd, f(X) = P(X X^T) X, so a repetition of it is one product of symmetric matrices of the smaller side
  n times X. Where the larger side is 1.5 n or more, these are multiplied first, and X but twice: a third of the
  multiplications for the kernel of a 3x3 convolution."""
  if x.shape[1] > x.shape[2]:
    return orthogonalize(x.swapaxes(1, 2)).swapaxes(1, 2)
  a, b, c = COEFFICIENTS
  x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
  gram = x @ x.swapaxes(1, 2)
  if 2 * x.shape[2] < 3 * x.shape[1]:
    for repetition in range(REPETITIONS):
      gram = x @ x.swapaxes(1, 2) if repetition else gram
      x = a * x + (b * gram + c * gram @ gram) @ x
    return x
  identity, total = jnp.eye(x.shape[1]), None
  for repetition in range(REPETITIONS):
    factor = a * identity + b * gram + c * gram @ gram
    total = factor if total is None else factor @ total
    if repetition < REPETITIONS - 1:
      gram = factor @ gram @ factor
  return total @ x
