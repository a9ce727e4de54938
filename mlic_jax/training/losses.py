"""The objective: bits per pixel plus lmbda times a distortion."""

import jax
import jax.numpy as jnp

from mlic_jax.metrics import ms_ssim

DISTORTIONS = ("mse", "ms_ssim")


def mean_squared_error(x_hat: jax.Array, x: jax.Array) -> jax.Array:
  """(B, H, W, 3) twice -> (B,), the mean over pixels and channels."""
  return jnp.mean(jnp.square(x_hat - x), axis=(1, 2, 3))


def rd_loss(out, x: jax.Array, lmbda: jax.Array, distortion: str = "mse", target: jax.Array | None = None,
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Rate plus lmbda times distortion of a CodecOutput, averaged over the batch: (scalar, metrics of the samples).

  x is (B, H, W, 3) in [0, 1]; lmbda is (B,) or scalar, in the scale of the papers:
    "mse":      bpp + lmbda * 255**2 * mse            mse of values in [0, 1]
    "ms_ssim":  bpp + lmbda * (1 - ms_ssim)
  A `target` (B, H, W, 3) takes the place of x in the loss, not in the metrics.
  The metrics are (B,) each: loss, bpp and its parts bpp_y and bpp_z (bits per pixel of the image), mse, psnr in dB,
  and ms_ssim when it is the distortion."""
  if distortion not in DISTORTIONS:
    raise ValueError(f"distortion={distortion!r}; wanted one of {', '.join(DISTORTIONS)}")
  num_pixels = x.shape[1] * x.shape[2]
  bpp_y = jnp.sum(out.y_bits, axis=(1, 2, 3)) / num_pixels
  bpp_z = jnp.sum(out.z_bits, axis=(1, 2, 3)) / num_pixels
  bpp = bpp_y + bpp_z
  mse = mean_squared_error(out.x_hat, x)
  metrics = dict(bpp=bpp, bpp_y=bpp_y, bpp_z=bpp_z, mse=mse, psnr=-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
  if distortion == "ms_ssim":
    metrics["ms_ssim"] = ms_ssim(out.x_hat, x)
    error = 1 - (metrics["ms_ssim"] if target is None else ms_ssim(out.x_hat, target))
  else:
    error = 255**2 * (mse if target is None else mean_squared_error(out.x_hat, target))
  loss = bpp + lmbda * error
  return jnp.mean(loss), dict(loss=loss, **metrics)
