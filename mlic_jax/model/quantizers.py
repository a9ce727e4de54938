"""Quantizers: functions that stand for rounding in training, bit estimates and latent optimization.

A quantizer is an argument of the scan over the slices and of the codec module. Its function takes the residual (latent
less its mean) and returns two residuals:

    quantize(residual, draws) -> received    used by the decoder: in y_hat, and so in all later predictions
                                 counted     used by the rate: its bits are counted

`draws` are random numbers from `draw`, arrays of the shape of the residual; None without `draw`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlic_jax.model.straight_through import ste_round


class Quantizer(NamedTuple):
  """A stand-in for rounding, see above. `draw(key, shape)` returns arrays of this shape for the latent of an image."""
  quantize: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]
  draw: Callable[[jax.Array, tuple[int, ...]], Any] | None = None

  def draws(self, key: jax.Array | None, shape: tuple[int, ...], first: jax.Array | int = 0) -> Any:
    """Return random numbers for latents of `shape` (B, ...), or None if the quantizer draws none.

    Those of image i depend on the key and on its index `first` + i in a larger batch. ValueError without a key."""
    if self.draw is None:
      return None
    if key is None:
      raise ValueError("got no key; this quantizer draws random numbers")
    draw = self.draw
    draw_one = lambda index: draw(jax.random.fold_in(key, index), shape[1:])
    return jax.vmap(draw_one)(first + jnp.arange(shape[0]))


def _round(residual: jax.Array, draws: None) -> tuple[jax.Array, jax.Array]:
  # The rate has no gradient through rounding, and the straight-through one would be wrong.
  return ste_round(residual), jax.lax.stop_gradient(jnp.round(residual))


def _add_noise(residual: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
  return ste_round(residual), residual + noise


def _unit_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)


# Rounding, as in a file. Its bits have no gradient.
ROUNDING = Quantizer(_round)
# Mixed quantization of training (Minnen & Singh, ICIP 2020): the rate has uniform noise, and the distortion has rounded
# latents with a straight-through gradient.
NOISE = Quantizer(_add_noise, _unit_noise)
