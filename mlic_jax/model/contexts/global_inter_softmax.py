"""Inter-slice global context by softmax attention (MLIC+, section 3, on inter-slice global context)."""

from mlic_jax.model.attention import softmax_attention
from mlic_jax.model.contexts import global_inter_linear

OPTIONS, check = global_inter_linear.OPTIONS, global_inter_linear.check


class Context(global_inter_linear.Context):
  """What slices 0..k-1 say about slice k from anywhere in the picture: (B, h, w, M) -> (B, h, w, features).

  The same parts as in MLIC++ but for the attention, whose time is quadratic in the number of positions (its memory is
  not).
  """
  attention = staticmethod(softmax_attention)
