"""The objective: bits per pixel plus lmbda times a distortion."""

import jax
import jax.numpy as jnp

from mlic_jax import distortions
from mlic_jax.distortions.mse import mean_squared_error


def rd_loss(out, x: jax.Array, lmbda: jax.Array, distortion: str = "mse", target: jax.Array | None = None,
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the rate-distortion objective of a CodecOutput, (scalar, metrics of the samples); the mean over the batch.

  Args:
    out: CodecOutput for x.
    x: (B, H, W, 3) in [0, 1].
    lmbda: (B,) or scalar, in the scale of the papers.
    distortion: name of a file in mlic_jax/distortions/, or an import path. PartError when there is none.
    target: (B, H, W, 3), which takes the place of x in the loss, not in the metrics.

  The metrics are (B,) each: loss, bpp and its parts bpp_y and bpp_z (bits per pixel of the image), mse of values in
  [0, 1], psnr in dB, and those of the distortion."""
  chosen, num_pixels = distortions.find(distortion), x.shape[1] * x.shape[2]
  bpp_y = jnp.sum(out.y_bits, axis=(1, 2, 3)) / num_pixels
  bpp_z = jnp.sum(out.z_bits, axis=(1, 2, 3)) / num_pixels
  bpp = bpp_y + bpp_z
  mse = mean_squared_error(out.x_hat, x)
  metrics = dict(bpp=bpp, bpp_y=bpp_y, bpp_z=bpp_z, mse=mse, psnr=-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
  distance = chosen.distance(out.x_hat, x)
  metrics |= distortions.metrics_of(chosen, distance)
  loss = distortions.rate_distortion(bpp, lmbda, distance if target is None else chosen.distance(out.x_hat, target))
  return jnp.mean(loss), dict(loss=loss, **metrics)
