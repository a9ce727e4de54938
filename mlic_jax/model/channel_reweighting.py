"""Channel reweighting of a context (MLICv2, section 3.4.2, reconstructed)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.model.layers import RESIDUAL_INIT, Conv, Gate
from mlic_jax.model.lazy_params import parameter

EPSILON = 1e-6  # of the squared length of a channel, which is zero where a context is silent


class Reweighting(nn.Module):
  """c (B, h, w, C) plus what its channels say to one another, once plain and once through a gate; (B, h, w, C).

  Attention over channels, softmax(temperature q^T k) v, with the channels of q and k at length 1 over the picture: as
  in Restormer (Zamir et al., CVPR 2022), the scores of a large picture are no larger than those of a crop. Without
  `cosines` the scores are q^T k / sqrt(h w), as in CompressAI. `gate_norm` is the `norm` of the gate."""
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
