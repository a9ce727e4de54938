"""Global context of the first slice, guided by the hyperprior (MLICv2, section 3.4.1, reconstructed).

In later slices the attention weights come from the previous slice (global_intra_linear.py). In the first slice they
come from the hyper features for means, which are nearest to y. The paper does not say which values are attended to.

Options:
  hyper_values   True: the values are hyper features. False: they are the anchors of the slice.
  guide_scales   use the hyper features for scales instead of those for means, as in CompressAI
"""

import sys

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import attention
from mlic_jax.model.attention import (
  Projection,
  linear_attention,
  nonanchor_features,
  project_parities,
  rotate_and_reweight,
  rotations,
)
from mlic_jax.model.checkerboard import pack, unpack
from mlic_jax.model.contexts import ContextInputs, hyper_guide
from mlic_jax.model.layers import Conv, Gate
from mlic_jax.model.registry import options

OPTIONS, check = attention.OPTIONS | {"hyper_values": True, "guide_scales": False}, attention.check
NUM_HEADS = 2


class Context(nn.Module):
  """Attention over distant positions for slice 0; inactive in other slices.

  With `hyper_values` queries of each parity attend to keys and values of the other parity, all from the hyper features,
  for both passes: (B, h, w, 2M) -> (B, h, w, features). Without it non-anchors attend to anchors. Queries and keys are
  hyper features, and values are the anchors of slice 0: -> (B, h, w/2, features).
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
  def __call__(self, inputs: ContextInputs) -> jax.Array:
    guide = hyper_guide(self.config, inputs, options(self.config, sys.modules[__name__])["guide_scales"])
    if not self.needs:
      return self._of_hyper(guide)
    assert inputs.anchor is not None  # "anchor" is in `needs`
    return self._of_anchors(guide, inputs.anchor, inputs.for_tpu)

  def _of_hyper(self, guide: jax.Array) -> jax.Array:
    b, h, w, _ = guide.shape
    q, k, v = (Projection(name=name)(guide) for name in ("queries", "keys", "values"))
    rotate = rotations(self.config, h, w)
    x: jax.Array | float = 0.0
    for anchors_query in (True, False):
      of = lambda t, anchors: pack(t, anchors).reshape(b, h * w // 2, -1)
      attended = linear_attention(of(q, anchors_query), of(k, not anchors_query), of(v, not anchors_query), NUM_HEADS,
                                  rotate(anchors_query), rotate(not anchors_query))
      x = x + unpack(attended.reshape(b, h, w // 2, -1), anchors_query)
    out = Conv(self.features, name="reprojection")(jnp.asarray(x))
    return rotate_and_reweight(self.config, out + Gate(name="gate")(nn.LayerNorm(name="norm")(out)))

  def _of_anchors(self, guide: jax.Array, anchor: jax.Array, for_tpu: bool) -> jax.Array:
    h, w = anchor.shape[1:3]
    guide = Conv(self.config.slice_channels, 1, name="guide")(guide)
    q, k, v = project_parities((guide, False), (guide, True), (anchor, True), for_tpu)
    rotate = rotations(self.config, h, w)
    attended = linear_attention(q, k, v, NUM_HEADS, rotate(False), rotate(True), for_tpu)
    return nonanchor_features(self.config, attended, h, w)
