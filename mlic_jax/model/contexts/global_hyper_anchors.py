"""Global context of the anchors of the first slice, guided by the hyperprior, as in MLICv2 of CompressAI.

It is another interpretation of section 3.4.1 of MLICv2 than global_intra_hyper.py. Here each parity is projected with
the other one set to zero, keys are normalized over all positions, and only anchors get the features.

Options:
  guide_scales    use the hyper features for scales as guide, instead of those for means
  head_channels   as in global_inter_linear.py, for the channels of one slice; the heads divide the M channels
"""

import sys
from typing import Any

import jax
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.attention import Projection, linear_attention
from mlic_jax.model.checkerboard import anchor_mask
from mlic_jax.model.contexts import ContextInputs, global_inter_linear, hyper_guide
from mlic_jax.model.layers import Conv, Gate
from mlic_jax.model.registry import options

OPTIONS = {"guide_scales": False, "head_channels": 0}


def check(config: CodecConfig) -> None:
  """Raise a ValueError in one line for invalid options."""
  global_inter_linear.check(config)
  if config.M % (heads := global_inter_linear.num_heads(config, 1)):
    raise ValueError(f"M={config.M} does not divide into the {heads} heads of global_hyper_anchors")


class Context(nn.Module):
  """Attention over the hyper features for the anchors of slice 0, (B, h, w, 2M) -> (B, h, w, features)."""
  config: CodecConfig
  needs = ()
  first_slice_only = True
  anchors_only = True

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, inputs: ContextInputs) -> jax.Array:
    guide = hyper_guide(self.config, inputs, options(self.config, sys.modules[__name__])["guide_scales"])
    b, h, w, m = guide.shape
    queries, keys, values = (Projection(name=name) for name in ("queries", "keys", "values"))
    flat = lambda t: t.reshape(b, h * w, m)
    value, is_anchor = values(guide), anchor_mask(h, w)[..., None]
    attended: Any = 0.0
    for query_mask in (is_anchor, ~is_anchor):
      q, k, v = queries(guide * query_mask), keys(guide * ~query_mask), value * ~query_mask
      attended = attended + linear_attention(flat(q), flat(k), flat(v), global_inter_linear.num_heads(self.config, 1))
    x = Conv(self.features, name="reprojection")(attended.reshape(b, h, w, m))
    return x + Gate(norm=True, name="gate")(x)
