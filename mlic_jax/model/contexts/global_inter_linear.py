"""Inter-slice global context by linear attention (MLIC++, section 3)."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import Mixer, Projection, linear_attention, reweighted, turns
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import Conv

OPTIONS, check = attention.OPTIONS, attention.check


class Context(nn.Module):
  """What slices 0..k-1 say about slice k from anywhere in the picture; one head per slice of y."""
  config: CodecConfig
  needs = ("decoded",)
  attention: ClassVar[Callable[..., jax.Array]] = staticmethod(linear_attention)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: ContextInputs) -> jax.Array:
    b, h, w, m = refs.decoded.shape
    heads = self.config.num_slices if refs.num_live is None else refs.num_live // self.config.slice_channels
    flat = lambda name: Projection(name=name)(refs.decoded, refs.live, refs.num_live).reshape(b, h * w, -1)
    turn = turns(self.config, h, w)(None)
    attended = self.attention(flat("queries"), flat("keys"), flat("values"), heads, turn_q=turn, turn_k=turn)
    attended = attended.reshape(b, h, w, -1)
    # The heads of slices that are not decoded yet see biases only; they have to stay silent.
    attended = attended * refs.live if refs.num_live is None else jnp.pad(
        attended, ((0, 0), (0, 0), (0, 0), (0, m - refs.num_live)))
    x = Conv(self.features * 3 // 2, 5, name="reprojection")(attended, refs.live)
    x = Conv(self.features, 1, name="skip")(x) + Mixer(2 * self.features, self.features, name="mlp")(x)
    return reweighted(self.config, x)
