"""Global context of the first slice, guided by the hyperprior (MLICv2, section 3.4.1, reconstructed).

In later slices, who resembles whom is taken from the slice before (global_intra_linear.py). For the first one the
hyperprior stands for it: the half of it about means, the nearest to y that there is. What is not known is what is
carried from one to the other; the setting `hyper_values` has both readings. The setting `guide_scales` takes the half
about scales in place of that about means, as CompressAI does.
"""

import sys

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import Projection, linear_attention, nonanchor_features, one_parity, refined, turns
from mlic_jax.model.checkerboard import pack, unpack
from mlic_jax.model.contexts import ContextInputs, hyper_guide
from mlic_jax.model.layers import Conv, Gate
from mlic_jax.model.registry import options

OPTIONS, check = attention.OPTIONS | {"hyper_values": True, "guide_scales": False}, attention.check
NUM_HEADS = 2


class Context(nn.Module):
  """What far places say about slice 0; it says nothing of others.

  With `hyper_values`, what the hyperprior has elsewhere, for both passes: each parity asks, the other has the keys and
  the values; (B, h, w, 2M) -> (B, h, w, features). Without, what the anchors of slice 0 are, for its non-anchors:
  these ask, by the hyperprior, and the anchors have the keys, by the same, and the values -> (B, h, w/2, features).
  """
  config: CodecConfig
  first_slice_only = True

  @property
  def needs(self) -> tuple[str, ...]:
    return () if options(self.config, sys.modules[__name__])["hyper_values"] else ("anchor",)

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: ContextInputs) -> jax.Array:
    guide = hyper_guide(self.config, refs, options(self.config, sys.modules[__name__])["guide_scales"])
    if not self.needs:
      return self._of_hyper(guide)
    assert refs.anchor is not None  # it is in what this context needs
    return self._of_anchors(guide, refs.anchor)

  def _of_hyper(self, guide: jax.Array) -> jax.Array:
    b, h, w, _ = guide.shape
    q, k, v = (Projection(name=name)(guide) for name in ("queries", "keys", "values"))
    turn = turns(self.config, h, w)
    x: jax.Array | float = 0.0
    for asking in (True, False):
      of = lambda t, anchors: pack(t, anchors).reshape(b, h * w // 2, -1)
      attended = linear_attention(of(q, asking), of(k, not asking), of(v, not asking), NUM_HEADS,
                                  turn(asking), turn(not asking))
      x = x + unpack(attended.reshape(b, h, w // 2, -1), asking)
    out = Conv(self.features, name="reprojection")(jnp.asarray(x))
    return refined(self.config, out + Gate(name="gate")(nn.LayerNorm(name="norm")(out)))

  def _of_anchors(self, guide: jax.Array, anchor: jax.Array) -> jax.Array:
    h, w = anchor.shape[1:3]
    guide = Conv(self.config.slice_channels, 1, name="guide")(guide)
    q = one_parity("queries", guide, anchors=False)
    k = one_parity("keys", guide, anchors=True)
    v = one_parity("values", anchor, anchors=True)
    turn = turns(self.config, h, w)
    return nonanchor_features(self.config, linear_attention(q, k, v, NUM_HEADS, turn(False), turn(True)), h, w)
