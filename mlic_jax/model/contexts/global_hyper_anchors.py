"""Global context of the anchors of the first slice, guided by the hyperprior: CompressAI's MLICv2 (section 3.4.1).

global_intra_hyper.py has our reading of that section. Here each parity is projected with the other one set to zero, the
keys are normalized over all positions, and only the anchors get the features.

Settings:
  guide_scales    the guide is the half of the hyper features about scales, in place of the half about means
  head_channels   as in global_inter_linear.py, of the channels of one slice; each head has a share of the M channels
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
  """ValueError in one line for settings that the context cannot have."""
  global_inter_linear.check(config)
  if config.M % (heads := global_inter_linear.num_heads(config, 1)):
    raise ValueError(f"M={config.M} does not divide into the {heads} heads of global_hyper_anchors")


class Context(nn.Module):
  """Carries hyper features of far positions to the anchors of slice 0: (B, h, w, 2M) -> (B, h, w, features)."""
  config: CodecConfig
  needs = ()
  first_slice_only = True
  anchors_only = True

  @property
  def features(self) -> int:
    return self.config.context_ratio * self.config.slice_channels

  @nn.compact
  def __call__(self, refs: ContextInputs) -> jax.Array:
    guide = hyper_guide(self.config, refs, options(self.config, sys.modules[__name__])["guide_scales"])
    b, h, w, m = guide.shape
    queries, keys, values = (Projection(name=name) for name in ("queries", "keys", "values"))
    flat = lambda t: t.reshape(b, h * w, m)
    value, is_anchor = values(guide), anchor_mask(h, w)[..., None]
    attended: Any = 0.0
    for asking in (is_anchor, ~is_anchor):
      q, k, v = queries(guide * asking), keys(guide * ~asking), value * ~asking
      attended = attended + linear_attention(flat(q), flat(k), flat(v), global_inter_linear.num_heads(self.config, 1))
    x = Conv(self.features, name="reprojection")(attended.reshape(b, h, w, m))
    return x + Gate(norm=True, name="gate")(x)
