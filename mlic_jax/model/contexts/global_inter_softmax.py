"""Inter-slice global context by softmax attention (MLIC+, section 3, on inter-slice global context)."""

from mlic_jax.model.attention import softmax_attention
from mlic_jax.model.contexts import global_inter_linear

OPTIONS, check = global_inter_linear.OPTIONS, global_inter_linear.check


class Context(global_inter_linear.Context):
  """Attention over all positions of slices 0..k-1 for slice k, (B, h, w, M) -> (B, h, w, features).

  It differs from MLIC++ in the attention only, whose time is quadratic in the number of positions. Its memory is
  linear.
  """
  attention = staticmethod(softmax_attention)
