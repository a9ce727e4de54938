"""What the global contexts share: linear and softmax attention over positions, and the convolutions around them.

Settings of all of them, for MLICv2:
  rotary                queries and keys are turned by their places
  reweighting           the channels of what a context found are weighed against one another
and readings of CompressAI's MLICv2, which differ from ours:
  rotary_output         the features are rotated by their absolute positions, in place of queries and keys
  reweighting_cosines   False: the scores between channels are divided by sqrt(h w), in place of cosines
  gate_norm             the gate of the reweighting has a LayerNorm of its own
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model.activation import gelu
from mlic_jax.model.channel_reweighting import Reweighting
from mlic_jax.model.checkerboard import anchor_mask, pack, places, unpack
from mlic_jax.model.layers import Conv
from mlic_jax.model.registry import options
from mlic_jax.model.rope import OutputRotary, Rotary, rotated

OPTIONS = {"rotary": False, "reweighting": False, "rotary_output": False, "reweighting_cosines": True,
           "gate_norm": False}
ROTARY_CHANNELS = 8  # of a slice: two heads with a pair for the row and one for the column
QUERY_BLOCK = 256  # queries at a time in softmax attention: what is held of the attention map is this many rows
HIDDEN = -100.0  # score of a key that a query does not see, where a query that sees no key takes the mean of all


def check(config: CodecConfig) -> None:
  """ValueError in one line when the heads are too small for two coordinates, or a setting is about nothing."""
  settings = options(config, sys.modules[__name__])
  if not (settings["reweighting_cosines"] or settings["reweighting"]):
    raise ValueError("options has reweighting_cosines=False without reweighting")
  if settings["rotary"] and config.slice_channels < ROTARY_CHANNELS:
    raise ValueError(f"M / num_slices = {config.slice_channels} channels a slice; rotary positions want "
                     f"{ROTARY_CHANNELS} or more")


class Projection(nn.Module):
  """1x1 and depthwise 3x3 convolution, (B, h, w, C) -> (B, h, w, C): queries, keys or values.

  With `live_outputs` the first so many channels of them."""

  @nn.compact
  def __call__(self, x: jax.Array, live: jax.Array | np.ndarray | None = None,
               live_outputs: int | None = None) -> jax.Array:
    channels = x.shape[-1]
    x = Conv(channels, 1, name="pointwise")(x, live, live_outputs)
    if live_outputs is not None:  # the parameters have their full shape
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - live_outputs)))
    return Conv(channels, 3, depthwise=True, name="depthwise")(x, None, live_outputs)


class Mixer(nn.Module):
  """The feed-forward part: 1x1, depthwise 3x3, 1x1, with GELU between; (B, h, w, C) -> (B, h, w, features)."""
  hidden: int
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = gelu(Conv(self.hidden, 1, name="expand")(x))
    x = gelu(Conv(self.hidden, 3, depthwise=True, name="depthwise")(x))
    return Conv(self.features, 1, name="reduce")(x)


def one_parity(name: str, x: jax.Array, anchors: bool) -> jax.Array:
  """`Projection` of the positions of one parity, (B, h, w, C) -> (B, h w/2, C); for compact methods."""
  b, h, w, c = x.shape
  x = x * (anchor_mask(h, w) == anchors)[..., None]
  return pack(Projection(name=name)(x), anchors).reshape(b, h * w // 2, c)


def nonanchor_features(config: CodecConfig, attended: jax.Array, h: int, w: int) -> jax.Array:
  """What was found for the non-anchors (B, h w/2, C) as features (B, h, w/2, features); for compact methods."""
  (b, _, c), features = attended.shape, config.context_ratio * config.slice_channels
  x = unpack(attended.reshape(b, h, w // 2, c), anchors=False)
  x = Conv(features, 5, name="reprojection")(x)
  return pack(refined(config, x + Mixer(2 * features, features, name="mlp")(x)), anchors=False)


def refined(config: CodecConfig, x: jax.Array) -> jax.Array:
  """The features x (B, h, w, C) of a context, rotated and reweighted as the settings say; for compact methods."""
  settings = options(config, sys.modules[__name__])
  x = OutputRotary(name="rotary_output")(x) if settings["rotary_output"] else x
  if not settings["reweighting"]:
    return x
  return Reweighting(settings["reweighting_cosines"], settings["gate_norm"], name="reweighting")(x)


def turns(config: CodecConfig, h: int, w: int) -> Callable[[bool | None], Callable[[jax.Array], jax.Array]]:
  """Parity -> what turns queries or keys of it (B, n, heads, d) by their places, as the setting `rotary` says.

  The parity is that of `places`. For compact methods."""
  if not options(config, sys.modules[__name__])["rotary"]:
    return lambda anchors: unturned
  log_theta = Rotary(name="rotary").log_theta
  return lambda anchors: lambda x: rotated(x, places(h, w, anchors), log_theta)


def unturned(x: jax.Array) -> jax.Array:
  """Queries or keys without positions."""
  return x


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int,
                     turn_q: Callable = unturned, turn_k: Callable = unturned) -> jax.Array:
  """Attention in memory and time linear in the number of positions (Shen et al., WACV 2021; MLIC++, section 3).

  Queries are normalized over the channels of a head, keys over positions: out = softmax(q) (softmax(k)^T v).

  Args:
    q: (B, positions, C); the heads are contiguous groups of C / num_heads channels.
    k, v: (B, other positions, C).
    turn_q, turn_k: what turns queries and keys, (B, positions, num_heads, C / num_heads) to the same, see `turns`. It
      comes after both have been normalized, so that what the attention is divided by is not turned (Su et al., 2021).

  Returns:
    (B, positions, C).
  """
  heads = lambda t: t.reshape(*t.shape[:2], num_heads, -1)
  q, k, v = turn_q(nn.softmax(heads(q), axis=-1)), turn_k(nn.softmax(heads(k), axis=1)), heads(v)
  summary = jnp.einsum("bnhd,bnhe->bhde", k, v)
  return jnp.einsum("bnhd,bhde->bnhe", q, summary).reshape(q.shape[0], q.shape[1], -1)


def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int,
                      visible: Callable[[jax.Array], jax.Array] | None = None, block: int = QUERY_BLOCK,
                      turn_q: Callable = unturned, turn_k: Callable = unturned,
                      average_unseen: bool = False) -> jax.Array:
  """Plain softmax attention, softmax(q k^T / sqrt(C / num_heads)) v, without ever holding the whole attention map.

  Queries are taken `block` at a time, and the gradient computes their part of the map again: memory is linear in the
  number of positions, in training too.

  Args:
    q: (B, queries, C); the heads are contiguous groups of C / num_heads channels.
    k, v: (B, keys, C).
    visible: which keys a query sees, as a function of query indexes (n,) -> (n, keys) bool; None for all. A query
      that sees no key gets zeros. Indexes go up to the next multiple of `block`.
    turn_q, turn_k: what turns queries and keys, (B, positions, num_heads, C / num_heads) to the same, see `turns`.
    average_unseen: a query that sees no key gets the mean of all values in place of zeros.

  Returns:
    (B, queries, C).
  """
  batch, count, channels = q.shape
  heads = lambda t: t.reshape(*t.shape[:-1], num_heads, channels // num_heads)
  q, k, v = turn_q(heads(q)) * (channels // num_heads)**-0.5, turn_k(heads(k)), heads(v)

  @jax.checkpoint
  def attend(indexes, q):  # (n,), (B, n, heads, C/heads)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    if visible is None:
      weights = nn.softmax(scores)
    else:
      seen = visible(indexes)
      if average_unseen:
        weights = nn.softmax(jnp.where(seen, scores, HIDDEN))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
      # Finite, so that a row without any visible key has finite weights, which `seen` then silences.
      weights = nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min)) * seen
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

  if count <= block:
    return attend(jnp.arange(count), q).reshape(batch, count, channels)
  num_blocks = -(-count // block)
  padded = jnp.pad(q, ((0, 0), (0, num_blocks * block - count), (0, 0), (0, 0)))
  blocks = jnp.moveaxis(padded.reshape(batch, num_blocks, block, *q.shape[2:]), 1, 0)
  out = jax.lax.map(lambda args: attend(*args), (jnp.arange(num_blocks * block).reshape(num_blocks, block), blocks))
  return jnp.moveaxis(out, 0, 1).reshape(batch, num_blocks * block, channels)[:, :count]
