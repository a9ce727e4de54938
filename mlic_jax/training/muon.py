"""Muon: momentum whose steps are orthogonalized, matrix by matrix (Jordan et al., 2024)."""

import collections
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The quintic polynomial of the Newton-Schulz iteration, which drives singular values towards 1 (Jordan et al., 2024).
COEFFICIENTS, REPETITIONS = (3.4445, -4.7750, 2.0315), 5
BETA = 0.95
# Root mean square of a step over the learning rate. It is about that of Adam, which makes learning rates comparable
# (Liu et al., "Muon is Scalable for LLM Training", 2025).
RMS = 0.2


class MuonState(NamedTuple):
  """The state between steps."""
  count: jax.Array  # type: ignore[assignment]  # () int32; it hides tuple.count
  mu: Any           # momentum, a tree like the parameters


def scale_by_muon(beta: float = BETA, rms: float = RMS, platform: str | None = None) -> optax.GradientTransformation:
  """Returns orthogonalized Nesterov momentum for kernels (..., size, size, inputs, outputs).

  A kernel is a matrix (taps * inputs, outputs); with leading axes, those of the slices, it is several matrices. The
  live part of a step, which excludes rows and columns that are zero throughout, has a root mean square of `rms`: the
  channels that a slice cannot see yet have no gradient, and must not make the step of the others longer.

  On the `platform` "gpu", all matrices of one shorter side are iterated in one loop, which is fewer and larger kernels.
  On "cpu", those whose longer side is at least 1.5 times as long are, and sums are matrix products. Such programs
  compile faster."""
  def init(params):
    return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.mu, updates)
    now, later = 1 - beta**count, 1 - beta**(count + 1)  # bias corrections of averages that began at zero
    nesterov = jax.tree.map(lambda m, g: beta * m / later + (1 - beta) * g / now, mu, updates)
    return _orthogonal_steps(nesterov, rms, platform), MuonState(count, mu)

  return optax.GradientTransformation(init, update)


def _orthogonal_steps(kernels: Any, rms: float, platform: str | None) -> Any:
  """Returns the step of each kernel of a tree.

  Matrices of one size, up to transposition, are orthogonalized as one batch: a network has few sizes, and the compiled
  program grows with their number."""
  leaves, treedef = jax.tree.flatten(kernels)
  matrices = [kernel.reshape(-1, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]) for kernel in leaves]
  is_tall = [matrix.shape[1] > matrix.shape[2] for matrix in matrices]
  flipped = lambda i, matrix: matrix.swapaxes(1, 2) if is_tall[i] else matrix  # to and from (batch, shorter, longer)
  by_size, steps = collections.defaultdict(list), [None] * len(leaves)
  for i, matrix in enumerate(matrices):
    by_size[tuple(sorted(matrix.shape[1:]))].append(i)
  batch_of = lambda indices: jnp.concatenate([flipped(i, matrices[i]) for i in indices])
  on_cpu, batches = platform == "cpu", list(map(batch_of, by_size.values()))
  in_loops = orthogonalize_by_side(batches, on_cpu) if platform in ("cpu", "gpu") else map(orthogonalize, batches)
  for indices, batch, orthogonal in zip(by_size.values(), batches, in_loops):
    batch = rms * jnp.sqrt(_longer_live_side(batch, on_cpu))[:, None, None] * orthogonal
    ends = np.cumsum([len(matrices[i]) for i in indices])
    for i, step in zip(indices, jnp.split(batch, ends[:-1])):
      steps[i] = flipped(i, step).reshape(leaves[i].shape)
  return jax.tree.unflatten(treedef, steps)


def _longer_live_side(matrices: jax.Array, by_products: bool = False) -> jax.Array:
  """Counts the rows and columns that are not zero throughout; returns the larger count of each matrix, (batch,).

  n singular values of 1 in an n x m part, n <= m, have a root mean square of m**-0.5 over that part."""
  is_live = matrices != 0
  if by_products:
    ones, numbers = (lambda *shape: jnp.ones(shape, matrices.dtype)), is_live.astype(matrices.dtype)
    of_lines = numbers @ ones(matrices.shape[2], 1), ones(1, matrices.shape[1]) @ numbers  # of rows, of columns
    is_line_live = [(number > 0).astype(matrices.dtype).reshape(len(matrices), 1, -1) for number in of_lines]
    return functools.reduce(jnp.maximum, [lines @ ones(lines.shape[2], 1) for lines in is_line_live])[:, 0, 0]
  count = lambda axis: jnp.any(is_live, axis).sum(-1)
  return jnp.maximum(count(1), count(2)).astype(matrices.dtype)


def orthogonalize(x: jax.Array) -> jax.Array:
  """Moves the singular values of matrices (batch, rows, columns) near 1, between 0.7 and 1.2; rows <= columns.

  The quintic is odd, f(X) = P(X X^T) X: an iteration multiplies X by symmetric matrices of the shorter side n. If the
  longer side is at least 1.5 n, the symmetric matrices are multiplied with each other first, and with X only twice.
  That is a third of the multiplications for the kernel of a 3x3 convolution."""
  x = _normalized(x)
  return _iterated(x) if _is_short(x) else _factor(x @ x.swapaxes(1, 2)) @ x


def orthogonalize_by_side(batches: list[jax.Array], on_cpu: bool = False) -> list[jax.Array]:
  """The same for each of several batches, with one loop for all batches that have the same number of rows.

  On CPU, where multiplications count more than kernels, matrices with nearly equal sides have loops of their own."""
  batches, by_rows = [_normalized(x, by_products=on_cpu) for x in batches], collections.defaultdict(list)
  for i, x in enumerate(batches):
    if on_cpu and _is_short(x):
      batches[i] = _iterated(x)
    else:
      by_rows[x.shape[1]].append(i)
  for indices in by_rows.values():
    factors = _factor(jnp.concatenate([batches[i] @ batches[i].swapaxes(1, 2) for i in indices]))
    ends = np.cumsum([len(batches[i]) for i in indices])
    for i, factor in zip(indices, jnp.split(factors, ends[:-1])):
      batches[i] = factor @ batches[i]
  return batches


def _is_short(x: jax.Array) -> bool:
  """Whether the iteration of matrices (batch, rows, columns) themselves has the fewest multiplications."""
  return 2 * x.shape[2] < 3 * x.shape[1]


def _iterated(x: jax.Array) -> jax.Array:
  iterate = lambda _, x: COEFFICIENTS[0] * x + _even(x @ x.swapaxes(1, 2)) @ x
  return jax.lax.fori_loop(0, REPETITIONS, iterate, x)


def _normalized(x: jax.Array, by_products: bool = False) -> jax.Array:
  if by_products:
    elements = x.reshape(len(x), 1, -1)
    norm = jnp.sqrt(elements @ elements.swapaxes(1, 2))
  else:
    norm = jnp.linalg.norm(x, axis=(1, 2), keepdims=True)
  return x / (norm + 1e-8)


def _even(gram: jax.Array) -> jax.Array:
  _, b, c = COEFFICIENTS
  return b * gram + c * gram @ gram


def _factor(gram: jax.Array) -> jax.Array:
  """The symmetric matrix that all iterations multiply X by, from X X^T (batch, rows, rows)."""
  a, identity = COEFFICIENTS[0], jnp.eye(gram.shape[1])

  def iterate_gram(_, state):
    total, factor, gram = state
    gram = factor @ gram @ factor
    factor = a * identity + _even(gram)
    return factor @ total, factor, gram

  first = a * identity + _even(gram)
  total, *_ = jax.lax.fori_loop(1, REPETITIONS, iterate_gram, (first, first, gram))
  return total
