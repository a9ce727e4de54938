"""Inter-slice global context by linear attention (MLIC++, section 3).

Setting, beside those of attention.py:
  head_channels   0: one head per slice of y. Otherwise the channels of slices 0..k-1 are divided into as many heads of
                  so many channels as fit, at least one; where these cannot be equal, into fewer. The authors' code
                  and CompressAI have 32, which are slices at the sizes of the papers.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import Mixer, Projection, linear_attention, refined, turns
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import Conv
from mlic_jax.model.registry import options

OPTIONS = attention.OPTIONS | {"head_channels": 0}


def check(config: CodecConfig) -> None:
  """ValueError in one line for settings that the context cannot have."""
  attention.check(config)
  if (channels := options(config, sys.modules[__name__])["head_channels"]) < 0:
    raise ValueError(f"options has head_channels={channels}; wanted 0 or more")


def num_heads(config: CodecConfig, num_decoded: int) -> int:
  """How many heads look at the first num_decoded slices, by the setting `head_channels`."""
  size, channels = options(config, sys.modules[__name__])["head_channels"], num_decoded * config.slice_channels
  most = max(1, channels // size) if size else num_decoded
  return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


class Context(nn.Module):
  """What slices 0..k-1 say about slice k from anywhere in the picture: (B, h, w, M) -> (B, h, w, features).

  One head per slice of y, unless `head_channels` says otherwise; heads of slices that are not decoded yet are silent.
  """
  config: CodecConfig
  needs = ("decoded",)
  attention: ClassVar[Callable[..., jax.Array]] = staticmethod(linear_attention)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: ContextInputs) -> jax.Array:
    b, h, w, m = refs.decoded.shape
    flat = lambda name: Projection(name=name)(refs.decoded, refs.live, refs.num_live).reshape(b, h * w, -1)
    turn = turns(self.config, h, w)(None)
    attend = partial(self.attention, turn_q=turn, turn_k=turn)
    attended = self._with_heads(attend, refs, flat("queries"), flat("keys"), flat("values")).reshape(b, h, w, -1)
    # The heads of slices that are not decoded yet see biases only; they have to stay silent.
    attended = attended * refs.live if refs.num_live is None else jnp.pad(
        attended, ((0, 0), (0, 0), (0, 0), (0, m - refs.num_live)))
    x = Conv(self.features * 3 // 2, 5, name="reprojection")(attended, refs.live)
    x = Conv(self.features, 1, name="skip")(x) + Mixer(2 * self.features, self.features, name="mlp")(x)
    return refined(self.config, x)

  def _with_heads(self, attend, refs: ContextInputs, *qkv: jax.Array) -> jax.Array:
    """attend(q, k, v, heads) with the number of heads that slice k has."""
    cs, heads = self.config.slice_channels, partial(num_heads, self.config)
    if refs.num_live is not None:
      return attend(*qkv, heads(refs.num_live // cs))
    counts = range(1, max(self.config.num_slices, 2))
    if len({count * cs // heads(count) for count in counts}) == 1:  # heads of one width, whatever k
      return attend(*qkv, self.config.M * heads(1) // cs)

    def of_decoded(count, *qkv):
      out = attend(*(t[..., :count * cs] for t in qkv), heads(count))
      return jnp.pad(out, ((0, 0), (0, 0), (0, self.config.M - count * cs)))

    return jax.lax.switch(refs.k - 1, [partial(of_decoded, count) for count in counts], *qkv)
