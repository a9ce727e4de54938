"""MS-SSIM: loss = bpp + lmbda * (1 - MS-SSIM), as in CompressAI and the MLIC papers."""

import jax

from mlic_jax.metrics import MS_SSIM_MIN_SIDE, ms_ssim

MIN_SIDE = MS_SSIM_MIN_SIDE


def distance(x_hat: jax.Array, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
  """Returns 1 - MS-SSIM, (B,). Padding counts like the image: windows reach over its edge, and `inside` is not read."""
  return 1 - ms_ssim(x_hat, x)


def metrics(distance: jax.Array) -> dict[str, jax.Array]:
  """Returns the MS-SSIM, (B,)."""
  return {"ms_ssim": 1 - distance}
