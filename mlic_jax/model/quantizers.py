"""Quantizers: what stands for rounding while a codec is trained, estimated or optimized.

A quantizer is one argument of the walk over the slices and of the codec module. Its function takes what is left of a
latent when its mean is subtracted, and gives two values that add to the mean again:

    quantize(residual, draws) -> received    what the decoder gets: the distortion, and all later predictions
                                 counted     what the bits are counted of

`draws` are random numbers that `draw` made for it, arrays of the shape of the residual; None without `draw`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlic_jax.model.straight_through import ste_round


class Quantizer(NamedTuple):
  """See the module. `draw(key, shape)` makes a tree of arrays of that shape, for the latent of one picture."""
  quantize: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]
  draw: Callable[[jax.Array, tuple[int, ...]], Any] | None = None

  def draws(self, key: jax.Array | None, shape: tuple[int, ...], first: jax.Array | int = 0) -> Any:
    """Random numbers for latents of `shape` (B, ...), each drawn by its place `first` + 0 .. B - 1 in a larger batch;
    None when the quantizer needs none."""
    if self.draw is None:
      return None
    if key is None:
      raise ValueError("this quantizer draws random numbers; wanted a key, None came")
    draw = self.draw
    draw_one = lambda place: draw(jax.random.fold_in(key, place), shape[1:])
    return jax.vmap(draw_one)(first + jnp.arange(shape[0]))


def _round(residual: jax.Array, draws: None) -> tuple[jax.Array, jax.Array]:
  # The rate has no gradient through rounding, and the straight-through one would be wrong.
  return ste_round(residual), jax.lax.stop_gradient(jnp.round(residual))


def _add_noise(residual: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
  return ste_round(residual), residual + noise


def _unit_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)


# What a file holds. Its bits have no gradient.
ROUNDING = Quantizer(_round)
# Training: the rate under uniform noise, the distortion of rounded latents with a straight-through gradient (Minnen &
# Singh, ICIP 2020, mixed quantization).
NOISE = Quantizer(_add_noise, _unit_noise)
