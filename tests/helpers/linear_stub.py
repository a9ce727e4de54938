"""A codec of two linear maps with the interface of model/mlic.py, which compiles in half a second."""
import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.likelihoods import FactorizedPrior, gaussian_bits
from mlic_jax.model.mlic import CodecOutput
from mlic_jax.model.straight_through import ste_round


class StandIn(nn.Module):
  """16x16 patches -> y (B, h, w, M) -> patches; z is the mean of 4x4 positions of the first N channels of y."""
  config: CodecConfig
  transform_dtype: jnp.dtype = jnp.float32  # these make no difference here
  remat: bool = False
  transform_precision: str | None = "highest"
  entropy_precision: str = "highest"
  scan_unroll: int = 0
  scan_groups: tuple[int, ...] = ()
  for_tpu: bool = False
  own_programs: bool = False

  def setup(self):
    self.g_a, self.g_s = nn.Dense(self.config.M), nn.Dense(16 * 16 * 3)
    self.z_prior = FactorizedPrior(self.config.N, widths=())  # a logistic: half of the operations of a step
    self.log_scale = self.param("log_scale", nn.initializers.zeros, (self.config.M,))

  def __call__(self, x, quality=None, num_arrived=None, first=0):
    b, height, width, _ = x.shape
    h, w = height // 16, width // 16
    gain = jnp.ones(()) if quality is None else jnp.broadcast_to(quality, (b,))[:, None, None, None]
    patches = x.reshape(b, h, 16, w, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
    y = self.g_a(patches) * gain
    z = y[..., :self.config.N].reshape(b, h // 4, 4, w // 4, 4, -1).mean((2, 4))
    z_bits = self.z_prior.bits(self._noisy(z - self.z_prior.medians, first) + self.z_prior.medians)
    y_bits = gaussian_bits(self._noisy(y, first), 0.0, 0.2 + jnp.exp(self.log_scale))
    y_hat = ste_round(y)
    patches = self.g_s(y_hat / gain).reshape(b, h, w, 16, 16, 3)
    return CodecOutput(patches.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape), y_hat, y_bits, z_bits)

  def aux_loss(self):
    return self.z_prior.aux_loss()

  def _noisy(self, latent, first):
    if not self.has_rng("noise"):
      return ste_round(latent)
    key, places = self.make_rng("noise"), first + jnp.arange(latent.shape[0])
    draw = lambda place: jax.random.uniform(jax.random.fold_in(key, place), latent.shape[1:], minval=-0.5, maxval=0.5)
    return latent + jax.vmap(draw)(places)
