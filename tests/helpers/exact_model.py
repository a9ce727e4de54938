"""A codec with closed-form loss and gradient, as a reference for the training step."""
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import CodecOutput

AUX_WEIGHT = 30.0  # of the distance of the quantiles from 2; their gradient is longer than that of the model


class ExactModel(nn.Module):
  """x_hat is an affine map of the colors; the bits are a square of a parameter, and tell what the step asked for.

  Bits per pixel of a sample: y costs rate**2 * quality (1 without a quality), z costs num_arrived (0 for None); with
  `noisy`, z costs the "noise" rng's number of the sample's place instead."""
  config: CodecConfig
  transform_dtype: jax.typing.DTypeLike = jnp.float32
  remat: bool = False
  transform_precision: str | None = "highest"
  entropy_precision: str = "highest"
  scan_unroll: int = 0
  scan_groups: tuple[int, ...] = ()
  for_tpu: bool = False
  own_programs: bool = False
  noisy: bool = False

  @nn.compact
  def __call__(self, x, quality=None, num_arrived=None, first=0):
    batch, pixels = x.shape[0], x.shape[1] * x.shape[2]
    kernel = self.param("kernel", lambda _: 0.5 * jnp.eye(3).reshape(1, 1, 3, 3) + 0.1)
    bias = self.param("bias", lambda _: jnp.array([0.3, -0.2, 0.1]))
    rate = self.param("rate", lambda _: jnp.array([0.5, 1.5]))
    self.param("quantiles", lambda _: jnp.array([[-1.0, 0.0, 1.0]]))
    of_sample = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))[:, None, None, None]
    y_bits = of_sample(1.0 if quality is None else quality) * jnp.square(rate) * pixels / 2
    z_bits = of_sample(0.0 if num_arrived is None else num_arrived) * pixels
    if self.noisy:
      key = self.make_rng("noise")
      draws = jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place)))(first + jnp.arange(batch))
      z_bits = of_sample(draws) * pixels
    return CodecOutput(x @ kernel[0, 0] + bias, y_bits, y_bits, z_bits)

  def aux_loss(self):
    return AUX_WEIGHT * jnp.abs(self.get_variable("params", "quantiles") - 2.0).sum()


def gradient_by_hand(params, x, lmbda, target=None, weight=1.0):
  """The gradient of weight * (bpp + lmbda * 255**2 * mse) without quality, in float64; lmbda and weight are (B,).

  x is (B, H, W, 3) in [0, 1]. The gradient of the quantiles, which the auxiliary loss alone trains, is not in it."""
  x, target = np.float64(x), np.float64(x if target is None else target)
  kernel = np.float64(params["kernel"][0, 0])
  error = x @ kernel + np.float64(params["bias"]) - target
  scale = (weight * lmbda * 255**2 * np.ones(len(x)) / len(x))[:, None, None, None] * 2 / error[0].size
  return dict(kernel=np.einsum("bhwi,bhwo->io", x, scale * error)[None, None], bias=(scale * error).sum((0, 1, 2)),
              rate=np.mean(weight * np.ones(len(x))) * np.float64(params["rate"]))
