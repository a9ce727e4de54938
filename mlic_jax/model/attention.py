"""Shared parts of the global contexts: linear and softmax attention over positions, with their convolutions.

Options of all global contexts, for MLICv2:
  rotary                rotate queries and keys by their positions
  reweighting           reweight the channels of the features by attention between channels
Options for the interpretation of MLICv2 in CompressAI:
  rotary_output         rotate the features by their absolute positions, instead of queries and keys
  reweighting_cosines   False: scores between channels are products divided by sqrt(h w), instead of cosines
  gate_norm             the gate of the reweighting has its own LayerNorm
"""

import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.kernels.convolution import conv2d, depthwise_conv
from mlic_jax.kernels.layouts import in_order
from mlic_jax.model.activation import gelu
from mlic_jax.model.channel_reweighting import Reweighting
from mlic_jax.model.checkerboard import anchor_mask, pack, positions, unpack
from mlic_jax.model.layers import Conv
from mlic_jax.model.registry import options
from mlic_jax.model.rope import OutputRotary, Rotary, rotate
from mlic_jax.model.softmax import softmax

OPTIONS = {"rotary": False, "reweighting": False, "rotary_output": False, "reweighting_cosines": True,
           "gate_norm": False}
ROTARY_CHANNELS = 8  # minimum per slice: two heads, each with a pair for the row and one for the column
QUERY_BLOCK = 256  # queries per block of softmax attention, which are rows of the attention map in memory
OfParity = tuple[jax.Array, bool]  # an image, and whether its anchors are meant or its non-anchors
HIDDEN = -100.0  # score of masked keys with average_unseen: a query without visible keys gets the mean of all


def check(config: CodecConfig) -> None:
  """Raise a ValueError if the heads are too small for two coordinates, or if an option has no effect."""
  settings = options(config, sys.modules[__name__])
  if not (settings["reweighting_cosines"] or settings["reweighting"]):
    raise ValueError("options has reweighting_cosines=False without reweighting")
  if settings["rotary"] and config.slice_channels < ROTARY_CHANNELS:
    raise ValueError(f"M / num_slices = {config.slice_channels} channels per slice; rotary positions want "
                     f"{ROTARY_CHANNELS} or more")


class Projection(nn.Module):
  """Queries, keys or values by a 1x1 and a depthwise 3x3 convolution, (B, h, w, C) -> (B, h, w, C).

  With `live_outputs` it computes and returns only this number of channels."""

  @nn.compact
  def __call__(self, x: jax.Array, live: jax.Array | np.ndarray | None = None,
               live_outputs: int | None = None) -> jax.Array:
    channels = x.shape[-1]
    x = Conv(channels, 1, name="pointwise")(x, live, live_outputs)
    if live_outputs is not None:  # the parameters have their full shapes
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - live_outputs)))
    return Conv(channels, 3, depthwise=True, name="depthwise")(x, None, live_outputs)


class Mixer(nn.Module):
  """Feed-forward network of 1x1, depthwise 3x3 and 1x1 convolutions with GELU, (B, h, w, C) -> (B, h, w, features)."""
  hidden: int
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = gelu(Conv(self.hidden, 1, name="expand")(x))
    x = gelu(Conv(self.hidden, 3, depthwise=True, name="depthwise")(x))
    return Conv(self.features, 1, name="reduce")(x)


def project_parities(queries: OfParity, keys: OfParity, values: OfParity, for_tpu: bool) -> list[jax.Array]:
  """Apply the `Projection` of queries, keys and values to the positions of one parity. For compact methods.

  Args:
    queries, keys, values: an image (B, h, w, C), and True for its anchors or False for its non-anchors.
    for_tpu: project the three as one image of 3C channels. A TPU takes hardly longer for 96 channels than for 32.

  Returns:
    Queries, keys and values, (B, h w/2, C) each.
  """
  given, (b, h, w, _) = (queries, keys, values), queries[0].shape
  projections = [Projection(name=name) for name in ("queries", "keys", "values")]
  images = [x * (anchor_mask(h, w) == anchors)[..., None] for x, anchors in given]
  flat = lambda packed: packed.reshape(b, h * w // 2, -1)
  if for_tpu is not True or "params" not in projections[0].variables:  # no parameters while they are initialized
    projected = (project(x) for project, x in zip(projections, images))
    return [flat(pack(x, anchors)) for x, (_, anchors) in zip(projected, given)]
  joined = _project_together(projections, images)
  packed = {anchors: jnp.split(flat(pack(joined, anchors)), 3, axis=-1) for anchors in {of for _, of in given}}
  return [packed[anchors][i] for i, (_, anchors) in enumerate(given)]


def _project_together(projections: Sequence[Projection], images: Sequence[jax.Array]) -> jax.Array:
  """Apply each projection to an image (B, h, w, C) and return the results side by side in the channels."""
  params = [each.variables["params"] for each in projections]
  joined = lambda layer, name: jnp.concatenate([each[layer][name] for each in params], axis=-1)
  pointwise = jax.scipy.linalg.block_diag(*(each["pointwise"]["kernel"][0, 0] for each in params))[None, None]
  x = conv2d(jnp.concatenate(images, axis=-1), pointwise, joined("pointwise", "bias"))
  return depthwise_conv(x, joined("depthwise", "kernel"), joined("depthwise", "bias"))


def nonanchor_features(config: CodecConfig, attended: jax.Array, h: int, w: int) -> jax.Array:
  """Map attended values of non-anchors (B, h w/2, C) to features (B, h, w/2, features). For compact methods."""
  (b, _, c), features = attended.shape, config.context_ratio * config.slice_channels
  x = unpack(attended.reshape(b, h, w // 2, c), anchors=False)
  x = Conv(features, 5, name="reprojection")(x)
  return pack(rotate_and_reweight(config, x + Mixer(2 * features, features, name="mlp")(x)), anchors=False)


def rotate_and_reweight(config: CodecConfig, x: jax.Array) -> jax.Array:
  """Rotate and reweight the features x (B, h, w, C) of a context by its options. For compact methods."""
  settings = options(config, sys.modules[__name__])
  x = OutputRotary(name="rotary_output")(x) if settings["rotary_output"] else x
  if not settings["reweighting"]:
    return x
  return Reweighting(settings["reweighting_cosines"], settings["gate_norm"], name="reweighting")(x)


def rotations(config: CodecConfig, h: int, w: int) -> Callable[[bool | None], Callable[[jax.Array], jax.Array]]:
  """Return a function: parity -> rotation of its queries or keys (B, n, heads, d) by their positions.

  Parities are as in `checkerboard.positions`. Without the option `rotary` nothing is rotated. For compact methods."""
  if not options(config, sys.modules[__name__])["rotary"]:
    return lambda anchors: no_rotation
  log_theta = Rotary(name="rotary").log_theta
  return lambda anchors: lambda x: rotate(x, positions(h, w, anchors), log_theta)


def no_rotation(x: jax.Array) -> jax.Array:
  """Return queries or keys as they are."""
  return x


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int,
                     rotate_q: Callable = no_rotation, rotate_k: Callable = no_rotation,
                     for_tpu: bool = False) -> jax.Array:
  """Attention with memory and time linear in the number of positions (Shen et al., WACV 2021; MLIC++, section 3).

  out = softmax(q) (softmax(k)^T v). Queries are normalized over the channels of a head, keys over positions.

  Args:
    q: (B, positions, C); the heads are contiguous groups of C / num_heads channels.
    k, v: (B, other positions, C).
    rotate_q, rotate_k: rotations of queries and keys (B, positions, num_heads, C / num_heads), see `rotations`. They
      come after the normalization, so that the denominator is not rotated (Su et al., 2021).
    for_tpu: without rotations the positions are the last axis, because a head is narrower than the 128 lanes of a TPU.

  Returns:
    (B, positions, C).
  """
  if for_tpu is True and rotate_q is rotate_k is no_rotation:
    heads = lambda t: in_order(t.swapaxes(1, 2).reshape(t.shape[0], num_heads, -1, t.shape[1]), range(4))
    q, k, v = softmax(heads(q), -2), softmax(heads(k), -1), heads(v)
    attended = jnp.einsum("bhde,bhdn->bhen", jnp.einsum("bhdn,bhen->bhde", k, v), q)
    return attended.reshape(q.shape[0], -1, q.shape[-1]).swapaxes(1, 2)
  heads = lambda t: t.reshape(*t.shape[:2], num_heads, -1)
  q, k, v = rotate_q(nn.softmax(heads(q), axis=-1)), rotate_k(nn.softmax(heads(k), axis=1)), heads(v)
  summary = jnp.einsum("bnhd,bnhe->bhde", k, v)
  return jnp.einsum("bnhd,bhde->bnhe", q, summary).reshape(q.shape[0], q.shape[1], -1)


def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int,
                      visible: Callable[[jax.Array], jax.Array] | None = None, block: int = QUERY_BLOCK,
                      rotate_q: Callable = no_rotation, rotate_k: Callable = no_rotation,
                      average_unseen: bool = False) -> jax.Array:
  """Softmax attention, softmax(q k^T / sqrt(C / num_heads)) v, with memory linear in the number of positions.

  It computes `block` rows of the attention map at a time, and the gradient computes them again.

  Args:
    q: (B, queries, C); the heads are contiguous groups of C / num_heads channels.
    k, v: (B, keys, C).
    visible: function from query indices (n,) to a mask (n, keys) bool of visible keys; None for all. A query without
      visible keys gets zeros. Indices go up to the next multiple of `block`.
    rotate_q, rotate_k: rotations of queries and keys (B, positions, num_heads, C / num_heads), see `rotations`.
    average_unseen: a query without visible keys gets the mean of all values instead of zeros.

  Returns:
    (B, queries, C).
  """
  batch, count, channels = q.shape
  heads = lambda t: t.reshape(*t.shape[:-1], num_heads, channels // num_heads)
  q, k, v = rotate_q(heads(q)) * (channels // num_heads)**-0.5, rotate_k(heads(k)), heads(v)

  @jax.checkpoint
  def attend(indices, q):  # (n,), (B, n, heads, C/heads)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    if visible is None:
      weights = nn.softmax(scores)
    else:
      seen = visible(indices)
      if average_unseen:
        weights = nn.softmax(jnp.where(seen, scores, HIDDEN))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
      # The score is finite, so that rows without visible keys have finite weights, which `seen` sets to zero.
      weights = nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min)) * seen
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

  if count <= block:
    return attend(jnp.arange(count), q).reshape(batch, count, channels)
  num_blocks = -(-count // block)
  padded = jnp.pad(q, ((0, 0), (0, num_blocks * block - count), (0, 0), (0, 0)))
  blocks = jnp.moveaxis(padded.reshape(batch, num_blocks, block, *q.shape[2:]), 1, 0)
  out = jax.lax.map(lambda args: attend(*args), (jnp.arange(num_blocks * block).reshape(num_blocks, block), blocks))
  return jnp.moveaxis(out, 0, 1).reshape(batch, num_blocks * block, channels)[:, :count]
