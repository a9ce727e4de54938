"""Inter-slice global context by linear attention (MLIC++, section 3).

Option, in addition to those of attention.py:
  head_channels   channels per head; 0: one head per slice of y. The channels of slices 0..k-1 are divided into as many
                  heads of this size as fit, at least one, and into fewer if their sizes would differ. The authors' code
                  and CompressAI have 32, which is one slice in the models of the papers.
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
from mlic_jax.model.attention import Mixer, Projection, linear_attention, rotate_and_reweight, rotations
from mlic_jax.model.contexts import ContextInputs
from mlic_jax.model.layers import Conv
from mlic_jax.model.registry import options

OPTIONS = attention.OPTIONS | {"head_channels": 0}


def check(config: CodecConfig) -> None:
  """Raise a ValueError in one line for invalid options."""
  attention.check(config)
  if (channels := options(config, sys.modules[__name__])["head_channels"]) < 0:
    raise ValueError(f"options has head_channels={channels}; wanted 0 or more")


def num_heads(config: CodecConfig, num_decoded: int) -> int:
  """Return the number of heads for the first num_decoded slices, by the option `head_channels`."""
  size, channels = options(config, sys.modules[__name__])["head_channels"], num_decoded * config.slice_channels
  most = max(1, channels // size) if size else num_decoded
  return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


class Context(nn.Module):
  """Attention over all positions of slices 0..k-1 for slice k, (B, h, w, M) -> (B, h, w, features).

  It has one head per slice of y by default. Heads of undecoded slices are zero.
  """
  config: CodecConfig
  needs = ("decoded",)
  attention: ClassVar[Callable[..., jax.Array]] = staticmethod(linear_attention)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, inputs: ContextInputs) -> jax.Array:
    b, h, w, m = inputs.decoded.shape
    live, width = inputs.live_in_group, inputs.num_live_in_group
    flat = lambda name: Projection(name=name)(inputs.decoded, live, width).reshape(b, h * w, -1)
    rotate = rotations(self.config, h, w)(None)
    attend = partial(self.attention, rotate_q=rotate, rotate_k=rotate)
    if self.attention is linear_attention:
      attend = partial(attend, for_tpu=inputs.for_tpu)
    attended = self._with_heads(attend, inputs, flat("queries"), flat("keys"), flat("values")).reshape(b, h, w, -1)
    if width is None or not isinstance(inputs.k, int):
      # Heads of undecoded slices see biases only, and have to stay zero.
      attended = attended * inputs.live[:width]
    if width is not None:
      attended = jnp.pad(attended, ((0, 0), (0, 0), (0, 0), (0, m - width)))
    x = Conv(self.features * 3 // 2, 5, name="reprojection")(attended, live)
    x = Conv(self.features, 1, name="skip")(x) + Mixer(2 * self.features, self.features, name="mlp")(x)
    return rotate_and_reweight(self.config, x)

  def _with_heads(self, attend, inputs: ContextInputs, *qkv: jax.Array) -> jax.Array:
    """Return attend(q, k, v, heads) with the number of heads of slice k."""
    cs, heads = self.config.slice_channels, partial(num_heads, self.config)
    width, known = qkv[0].shape[-1], inputs.num_live_in_group is not None
    if known and isinstance(inputs.k, int):
      return attend(*qkv, heads(width // cs))
    first = max(inputs.group[0], 1) if inputs.group else 1
    counts = range(first, 1 + (width // cs if known else max(self.config.num_slices - 1, 1)))
    if len({count * cs // heads(count) for count in counts}) == 1:  # heads have the same width for all k
      return attend(*qkv, width * heads(first) // (first * cs))

    def of_decoded(count, *qkv):
      out = attend(*(t[..., :count * cs] for t in qkv), heads(count))
      return jnp.pad(out, ((0, 0), (0, 0), (0, width - count * cs)))

    return jax.lax.switch(inputs.k - first, [partial(of_decoded, count) for count in counts], *qkv)
