"""Mean squared error in 8-bit levels: loss = bpp + lmbda * 255**2 * mse, as in CompressAI and the MLIC papers."""

import jax
import jax.numpy as jnp

MIN_SIDE = 1


def mean_squared_error(x_hat: jax.Array, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
  """Returns the mean over pixels and channels, (B,), of (B, H, W, 3) twice; over the pixels `inside` if it is given."""
  error = jnp.square(x_hat - x)
  if inside is None:
    return jnp.mean(error, axis=(1, 2, 3))
  return (error * inside).sum((1, 2, 3)) / (x.shape[-1] * inside.sum((1, 2, 3)))


def distance(x_hat: jax.Array, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
  """Returns 255**2 times the mean squared error of values in [0, 1], (B,)."""
  return 255**2 * mean_squared_error(x_hat, x, inside)


def metrics(distance: jax.Array) -> dict[str, jax.Array]:
  """Returns nothing: every log has the mean squared error and PSNR."""
  return {}
