"""The rate-distortion loss: bits per pixel plus lmbda times a distortion."""

import jax
import jax.numpy as jnp

from mlic_jax import distortions
from mlic_jax.distortions import mse as mse_distortion
from mlic_jax.distortions.mse import mean_squared_error
from mlic_jax.model.layers import pixel_unshuffle


def rd_loss(out, x: jax.Array, lmbda: jax.Array, distortion: str = "mse", target: jax.Array | None = None,
            cell: int = 1) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the rate-distortion loss of a CodecOutput, averaged over the batch, and metrics of each image.

  The metrics are (B,) each: loss, bpp = bpp_y + bpp_z (bits per pixel of the image), mse of values in [0, 1], psnr in
  dB, and those of the distortion.

  Args:
    out: the CodecOutput for x.
    x: (B, H, W, 3) in [0, 1].
    lmbda: (B,) or scalar, in the scale of the papers.
    distortion: the name of a file in mlic_jax/distortions/, or an import path. PartError if there is none.
    target: (B, H, W, 3), which replaces x in the loss, but not in the metrics.
    cell: squares of cell x cell pixels whose squared errors are taken as channels. With the last pixel_shuffle of g_s,
      XLA then removes the shuffle, which is slow on TPUs: 1.2 M cycles instead of 5.4 M for the last layer of MLIC++
      with 4 images of 256x256. It changes the order of the sums.
  """
  chosen, num_pixels = distortions.find(distortion), x.shape[1] * x.shape[2]
  bpp_y = jnp.sum(out.y_bits, axis=(1, 2, 3)) / num_pixels
  bpp_z = jnp.sum(out.z_bits, axis=(1, 2, 3)) / num_pixels
  bpp = bpp_y + bpp_z
  of_cells = lambda image: as_cells(image, cell)
  mse = mean_squared_error(of_cells(out.x_hat), of_cells(x))
  metrics = dict(bpp=bpp, bpp_y=bpp_y, bpp_z=bpp_z, mse=mse, psnr=-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
  by_element = of_cells if chosen is mse_distortion else lambda image: image
  distance_to = lambda image: chosen.distance(by_element(out.x_hat), by_element(image))
  distance = distance_to(x)
  metrics |= distortions.metrics_of(chosen, distance)
  loss = distortions.rate_distortion(bpp, lmbda, distance if target is None else distance_to(target))
  return jnp.mean(loss), dict(loss=loss, **metrics)


def as_cells(image: jax.Array, cell: int) -> jax.Array:
  """Moves the pixels of a cell to channels: (B, H, W, C) -> (B, H/cell, W/cell, C*cell^2); no change for 1."""
  return pixel_unshuffle(image, cell) if cell > 1 else image
