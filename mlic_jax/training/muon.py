"""Muon: momentum whose steps are orthogonalized, matrix by matrix (Jordan et al., 2024)."""

import collections
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
NORM_MIN = 1e-8  # is added to norms


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
  On "cpu", steps_on_cpu computes the steps."""
  def init(params):
    return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.mu, updates)
    now, later = 1 - beta**count, 1 - beta**(count + 1)  # bias corrections of averages that began at zero
    if platform == "cpu":  # without divisions of arrays, which XLA compiles to kernels of their own there
      nesterov = jax.tree.map(lambda m, g: beta / later * m + (1 - beta) / now * g, mu, updates)
    else:
      nesterov = jax.tree.map(lambda m, g: beta * m / later + (1 - beta) * g / now, mu, updates)
    return _orthogonal_steps(nesterov, rms, platform), MuonState(count, mu)

  return optax.GradientTransformation(init, update)


def _orthogonal_steps(kernels: Any, rms: float, platform: str | None) -> Any:
  """Returns the step of each kernel of a tree.

  Matrices of one size, up to transposition, are orthogonalized as one batch: a network has few sizes, and the compiled
  program grows with their number."""
  leaves, treedef = jax.tree.flatten(kernels)
  matrices = [kernel.reshape(-1, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]) for kernel in leaves]
  if platform == "cpu":
    on_cpu = steps_on_cpu(matrices, rms)
    return jax.tree.unflatten(treedef, [step.reshape(leaf.shape) for step, leaf in zip(on_cpu, leaves)])
  is_tall = [matrix.shape[1] > matrix.shape[2] for matrix in matrices]
  flipped = lambda i, matrix: matrix.swapaxes(1, 2) if is_tall[i] else matrix  # to and from (batch, shorter, longer)
  by_size, steps = collections.defaultdict(list), [None] * len(leaves)
  for i, matrix in enumerate(matrices):
    by_size[tuple(sorted(matrix.shape[1:]))].append(i)
  batch_of = lambda indices: jnp.concatenate([flipped(i, matrices[i]) for i in indices])
  batches = list(map(batch_of, by_size.values()))
  in_loops = orthogonalize_by_side(batches) if platform == "gpu" else map(orthogonalize, batches)
  for indices, batch, orthogonal in zip(by_size.values(), batches, in_loops):
    batch = rms * jnp.sqrt(_longer_live_side(batch))[:, None, None] * orthogonal
    ends = np.cumsum([len(matrices[i]) for i in indices])
    for i, step in zip(indices, jnp.split(batch, ends[:-1])):
      steps[i] = flipped(i, step).reshape(leaves[i].shape)
  return jax.tree.unflatten(treedef, steps)


def _longer_live_side(matrices: jax.Array) -> jax.Array:
  """Counts the rows and columns that are not zero throughout; returns the larger count of each matrix, (batch,).

  n singular values of 1 in an n x m part, n <= m, have a root mean square of m**-0.5 over that part."""
  is_live = matrices != 0
  count = lambda axis: jnp.any(is_live, axis).sum(-1)
  return jnp.maximum(count(1), count(2)).astype(matrices.dtype)


def orthogonalize(x: jax.Array) -> jax.Array:
  """Moves the singular values of matrices (batch, rows, columns) near 1, between 0.7 and 1.2; rows <= columns.

  The quintic is odd, f(X) = P(X X^T) X: an iteration multiplies X by symmetric matrices of the shorter side n. If the
  longer side is at least 1.5 n, the symmetric matrices are multiplied with each other first, and with X only twice.
  That is a third of the multiplications for the kernel of a 3x3 convolution."""
  x = _normalized(x)
  return _iterated(x) if _is_short(*x.shape[1:]) else _factor(x @ x.swapaxes(1, 2)) @ x


def orthogonalize_by_side(batches: list[jax.Array]) -> list[jax.Array]:
  """The same for each of several batches, with one loop for all batches that have the same number of rows."""
  batches, by_rows = [_normalized(x) for x in batches], collections.defaultdict(list)
  for i, x in enumerate(batches):
    by_rows[x.shape[1]].append(i)
  for indices in by_rows.values():
    factors = _factor(jnp.concatenate([batches[i] @ batches[i].swapaxes(1, 2) for i in indices]))
    ends = np.cumsum([len(batches[i]) for i in indices])
    for i, factor in zip(indices, jnp.split(factors, ends[:-1])):
      batches[i] = factor @ batches[i]
  return batches


def steps_on_cpu(matrices: list[jax.Array], rms: float) -> list[jax.Array]:
  """Returns the steps of matrices (batch, rows, columns) in a program that compiles and runs fast on CPU.

  There XLA compiles a kernel for everything but products of matrices, and these kernels would take longer than the
  products. Large matrices are therefore only multiplied: tall ones from the right and not transposed. Norms and scales
  of steps go into the small factors, which are computed together for all matrices with one shorter side. Matrices with
  nearly equal sides are iterated themselves, size by size, because multiplications count more than kernels."""
  by_shape, by_side = collections.defaultdict(list), collections.defaultdict(list)
  for i, x in enumerate(matrices):
    by_shape[x.shape[1:]].append(i)
  for shape in by_shape:
    by_side[shape if _is_short(min(shape), max(shape)) else min(shape)].append(shape)
  steps: list[Any] = [None] * len(matrices)
  for side, shapes in by_side.items():
    batches = [jnp.concatenate([matrices[i] for i in by_shape[shape]]) for shape in shapes]
    for shape, batch in zip(shapes, _steps_of_a_side(batches, rms, is_short=side in by_shape)):
      for i, step in zip(by_shape[shape], _split_like(batch, [matrices[i] for i in by_shape[shape]])):
        steps[i] = step
  return steps


def _steps_of_a_side(batches: list[jax.Array], rms: float, is_short: bool) -> list[jax.Array]:
  """Returns the steps of batches of matrices that have the same shorter side; one batch if they are short.

  A line along the longer side whose elements are all below 1e-19 counts as dead too, as its squares are zero. Beside
  NORM_MIN its step is none."""
  side = min(batches[0].shape[1:])
  gram = jnp.concatenate(list(map(_gram, batches)))
  # The diagonal has the squared norms of the lines along the longer side.
  squares = jax.lax.slice(gram.reshape(len(gram), -1), (0, 0), (len(gram), side**2), (1, side + 1))
  norm = jnp.sqrt(squares @ jnp.ones((side, 1)))[:, :, None] + NORM_MIN
  size = rms * jnp.sqrt(jnp.maximum(_live_lines(batches), _count(squares)))[:, None, None]
  gram = gram / norm**2
  if is_short:
    x, = batches
    for i in range(REPETITIONS):
      x = _product(_polynomial(_gram(x)) if i else _polynomial(gram) / norm, x)
    return [size * x]
  total = factor = _polynomial(gram)
  for _ in range(1, REPETITIONS):  # a loop would copy its state
    gram = factor @ gram @ factor
    factor = _polynomial(gram)
    total = factor @ total
  return [_product(factor, x) for factor, x in zip(_split_like(size / norm * total, batches), batches)]


def _split_like(batch: jax.Array, parts: list[jax.Array]) -> list[jax.Array]:
  return jnp.split(batch, np.cumsum([len(part) for part in parts])[:-1])


def _live_lines(batches: list[jax.Array]) -> jax.Array:
  """Counts the lines along the shorter side of matrices (batch, rows, columns) that are not zero throughout."""
  numbers, longest = [], max(max(x.shape[1:]) for x in batches)
  for x in batches:
    is_live, ones = (x != 0).astype(x.dtype), jnp.ones(min(x.shape[1:]))
    number = is_live @ ones if x.shape[1] > x.shape[2] else jnp.einsum("brc,r->bc", is_live, ones)
    numbers.append(jnp.pad(number, ((0, 0), (0, longest - number.shape[1]))))
  return _count(jnp.concatenate(numbers))


def _count(numbers: jax.Array) -> jax.Array:
  """Counts the positive numbers of each row; a sum would be more kernels than a product."""
  return (numbers > 0).astype(numbers.dtype) @ jnp.ones(numbers.shape[1])


def _gram(x: jax.Array) -> jax.Array:
  """Returns the products of all pairs of lines along the longer side, (batch, shorter, shorter)."""
  return jnp.einsum("brc,brd->bcd" if x.shape[1] > x.shape[2] else "brc,bsc->brs", x, x)


def _product(factor: jax.Array, x: jax.Array) -> jax.Array:
  """Returns the product of a symmetric matrix of the shorter side and of a matrix, on that side."""
  return x @ factor if x.shape[1] > x.shape[2] else factor @ x


def _polynomial(gram: jax.Array) -> jax.Array:
  a, b, c = COEFFICIENTS
  return a * jnp.eye(gram.shape[1]) + b * gram + c * (gram @ gram)


def _is_short(shorter: int, longer: int) -> bool:
  """Whether the iteration of matrices with these sides themselves has the fewest multiplications."""
  return 2 * longer < 3 * shorter


def _iterated(x: jax.Array) -> jax.Array:
  iterate = lambda _, x: COEFFICIENTS[0] * x + _even(x @ x.swapaxes(1, 2)) @ x
  return jax.lax.fori_loop(0, REPETITIONS, iterate, x)


def _normalized(x: jax.Array) -> jax.Array:
  return x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + NORM_MIN)


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
