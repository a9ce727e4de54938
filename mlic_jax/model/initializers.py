"""Initial kernels, whose random numbers can be drawn all at once.

`model.init` draws for each kernel apart. Each such generator is a part of the program, which XLA goes through again and
again: to compile the first parameters of nano took 6.9 s, and 1.0 s with one generator for all of them. So
`initial_variables` has the kernels say how wide they are, and draws for all of them together.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

TRUNCATION = 2.0               # of the normal distribution, in its standard deviations
DEVIATION = 0.87962566103423978  # what it has as a standard deviation after that
BLOCK = 2**18                  # numbers that are drawn at once: one after the other they take little memory

_postponed: contextvars.ContextVar[bool] = contextvars.ContextVar("postponed", default=False)


@flax.struct.dataclass
class PendingNormal(nn.meta.AxisMetadata):
  """Stands for a kernel until it is drawn."""
  deviation: jax.Array  # of each element, in the shape of the kernel

  def unbox(self) -> jax.Array:
    return self.deviation

  def replace_boxed(self, value: Any) -> Any:
    return PendingNormal(value)

  def add_axis(self, index: int, params: dict) -> "PendingNormal":
    return self

  def remove_axis(self, index: int, params: dict) -> "PendingNormal":
    return self


def normal(key: jax.Array, deviation: jax.Array) -> jax.Array | PendingNormal:
  """An initial kernel: truncated normal, with the standard deviation `deviation` for each element."""
  if _postponed.get():
    return PendingNormal(deviation)
  drawn = jax.random.truncated_normal(key, -TRUNCATION, TRUNCATION, deviation.shape, deviation.dtype)
  return drawn / DEVIATION * deviation


def initial_variables(init: Callable, key: jax.Array) -> dict:
  """The variables that init(key) of a module gives, with other random numbers for the kernels that `normal` makes: from
  one generator. To be compiled: what init computes beside the variables is not run then."""
  of_init, of_kernels = jax.random.split(key)
  with _postponing():
    variables = init(of_init)
  leaves, tree = jax.tree.flatten(variables, is_leaf=lambda leaf: isinstance(leaf, PendingNormal))
  kernels = [place for place, leaf in enumerate(leaves) if isinstance(leaf, PendingNormal)]
  ends = np.cumsum([0, *(leaves[place].deviation.size for place in kernels)])
  numbers = _truncated_normal(of_kernels, ends[-1])
  for place, start, end in zip(kernels, ends, ends[1:]):
    deviation = leaves[place].deviation
    leaves[place] = numbers[start:end].reshape(deviation.shape) * deviation
  return jax.tree.unflatten(tree, leaves)


@contextlib.contextmanager
def _postponing() -> Iterator[None]:
  token = _postponed.set(True)
  try:
    yield
  finally:
    _postponed.reset(token)


def _truncated_normal(key: jax.Array, count: int) -> jax.Array:
  """(count,), with a standard deviation of 1."""
  draw = lambda block: jax.random.truncated_normal(jax.random.fold_in(key, block), -TRUNCATION, TRUNCATION, (BLOCK,))
  blocks = jax.lax.map(draw, jnp.arange(math.ceil(count / BLOCK)))
  return blocks.reshape(-1)[:count] / DEVIATION
