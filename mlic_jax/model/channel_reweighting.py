"""Channel reweighting of a context (MLICv2, section 3.4.2, reconstructed)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.model.layers import RESIDUAL_INIT, Conv, Gate
from mlic_jax.model.lazy_params import parameter

EPSILON = 1e-6  # added to the squared norm of a channel, which is zero in inactive contexts


class Reweighting(nn.Module):
  """c + a + gate(a), where a is attention between the channels of c; (B, h, w, C) -> (B, h, w, C).

  The attention is softmax(temperature q^T k) v, with channels of q and k of norm 1 over the image. As in Restormer
  (Zamir et al., CVPR 2022), scores then do not grow with the image. Without `cosines` the scores are q^T k / sqrt(h w),
  as in CompressAI. `gate_norm` is the `norm` of the gate."""
  cosines: bool = True
  gate_norm: bool = False

  @nn.compact
  def __call__(self, c: jax.Array) -> jax.Array:
    b, h, w, channels = c.shape
    u = nn.LayerNorm(name="norm")(c)
    flat = lambda name: Conv(channels, 1, name=name)(u).reshape(b, h * w, channels)
    unit = lambda t: t * jax.lax.rsqrt(jnp.square(t).sum(1, keepdims=True) + EPSILON)
    q, k, v = flat("queries"), flat("keys"), flat("values")
    if self.cosines:
      scores = parameter(self, "temperature", nn.initializers.ones, ()) * jnp.einsum("bni,bnj->bij", unit(q), unit(k))
    else:
      scores = jnp.einsum("bni,bnj->bij", q, k) * (h * w)**-0.5
    mixed = jnp.einsum("bij,bnj->bni", nn.softmax(scores), v).reshape(c.shape)
    start = nn.initializers.constant(RESIDUAL_INIT)
    out = nn.LayerNorm(scale_init=start, name="norm_out")(Conv(channels, 1, name="out")(mixed))
    return c + out + Gate(norm=self.gate_norm, name="gate")(out)
