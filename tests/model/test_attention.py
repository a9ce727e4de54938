"""Tests of attention over positions, linear and softmax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.in_numpy import in_numpy

from mlic_jax.model.attention import linear_attention, softmax_attention
from mlic_jax.model.channel_reweighting import Reweighting
from mlic_jax.model.checkerboard import anchor_mask, pack
from mlic_jax.model.contexts.global_intra_softmax import beyond_window
from mlic_jax.model.rope import Rotary

HEADS = 2


def naive_attention(q, k, v, seen=None):
  """The formula, with the whole map; `seen` (queries, keys) bool."""
  split = lambda t: t.reshape(*t.shape[:2], HEADS, -1)
  q, k, v = split(q), split(k), split(v)
  scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
  scores = scores if seen is None else np.where(seen, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v).reshape(*q.shape[:2], -1)


def queries_keys_values(queries: int, keys: int, channels: int = 8):
  rng = np.random.default_rng(0)
  return [rng.normal(size=(2, n, channels)).astype(np.float32) for n in (queries, keys, keys)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [7, 13, 64])  # does not divide the queries; all in one block
def test_softmax_attention_in_blocks_is_the_formula(block, masked):
  q, k, v = queries_keys_values(26, 11)
  seen = np.random.default_rng(1).random((26, 11)) < 0.6
  seen[:, 3] = True
  visible = (lambda queries: jnp.asarray(seen)[queries]) if masked else None
  got = in_numpy(lambda *qkv: softmax_attention(*qkv, HEADS, visible, block))(q, k, v)
  np.testing.assert_allclose(got, naive_attention(q, k, v, seen if masked else None), atol=1e-5)


@pytest.mark.parametrize("block", [3, 8])
def test_a_query_that_sees_no_key_gets_zeros_and_finite_gradients(block):
  arrays = queries_keys_values(8, 5)
  seen = jnp.asarray(np.arange(8)[:, None] % 2 == np.ones((1, 5), int))  # every other query sees nothing
  attend = lambda q, k, v: softmax_attention(100 * q, k, v, HEADS, lambda queries: seen[queries], block)

  @in_numpy
  def both(*arrays):
    return attend(*arrays), jax.grad(lambda *args: (attend(*args)**2).sum(), argnums=(0, 1, 2))(*arrays)

  out, gradients = both(*arrays)
  np.testing.assert_array_equal(out[:, ::2], 0)
  np.testing.assert_allclose(out[:, 1::2], naive_attention(100 * arrays[0], *arrays[1:])[:, 1::2], atol=1e-5)
  assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients)
  np.testing.assert_array_equal(gradients[0][:, ::2], 0)


def test_the_gradient_of_softmax_attention_does_not_depend_on_the_block():
  arrays = queries_keys_values(10, 6)
  visible = lambda queries: (queries[:, None] + jnp.arange(6)) % 3 > 0
  loss = lambda block: lambda *args: (softmax_attention(*args, HEADS, visible, block)**2).sum()
  for a, b in zip(*(in_numpy(jax.grad(loss(block), argnums=(0, 1, 2)))(*arrays) for block in (4, 10))):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_softmax_attention_never_holds_the_whole_map(training):
  attend = lambda q, k, v: (softmax_attention(q, k, v, HEADS, block=16)**2).sum()
  function = jax.jit(jax.grad(attend, argnums=(0, 1, 2)) if training else attend)

  def megabytes(positions):  # that the compiled function wants beside its arguments; nothing is run
    shape = jax.ShapeDtypeStruct((1, positions, 8), jnp.float32)
    return function.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes / 1e6

  whole_map = 4 * HEADS * 4096**2 / 1e6
  assert megabytes(4096) < 2.1 * megabytes(2048) < 0.1 * whole_map


def test_exactly_the_anchors_in_the_window_are_hidden():
  h, w, size = 6, 8, 5
  place = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
  keys, queries, mask = in_numpy(lambda place: (pack(place, True), pack(place, False), anchor_mask(h, w)))(place)
  keys, queries = keys.reshape(-1, 2), queries.reshape(-1, 2)
  assert all(mask[tuple(keys.T)]) and not any(mask[tuple(queries.T)])
  distance = np.abs(queries[:, None] - keys[None]).max(-1)
  got = in_numpy(partial(beyond_window, h=h, w=w, size=size))(np.arange(h * w // 2, dtype=np.int32))
  np.testing.assert_array_equal(got, distance > 2)
  assert (~got).sum(1).max() == 12  # of the 25 places of a window


@pytest.mark.parametrize("channels", [4, 10])
def test_scores_of_rotated_queries_and_keys_depend_on_their_offset_only(channels):
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(2, 1, 1, 2, channels)).astype(np.float32)
  variables = {"params": {"log_theta": np.log(np.float32([10000, 100]))}}
  rotary = in_numpy(Rotary().apply)
  turned = lambda x, *place: rotary(variables, x, np.int32([place]))
  meet = lambda a, b: np.einsum("bnhd,bnhd->bnh", turned(q, *a), turned(k, *b))
  here = meet((0, 0), (2, 5))
  np.testing.assert_allclose(here, meet((40, 7), (42, 12)), atol=1e-5)
  assert all(not np.allclose(here, meet((0, 0), place), atol=1e-2) for place in ((3, 5), (2, 6), (5, 2)))
  np.testing.assert_allclose(turned(q, 0, 0), q, atol=1e-6)


def test_linear_attention_rotates_after_the_feature_map_and_not_in_the_denominator():
  q, k, v = queries_keys_values(6, 5)
  turn = lambda x: x[..., ::-1] * np.float32([1, -1, 1, -1])  # of heads of four channels
  got = in_numpy(lambda *qkv: linear_attention(*qkv, HEADS, turn, turn))(q, k, v)
  split = lambda t: t.astype(np.float64).reshape(*t.shape[:2], HEADS, -1)
  exp_q, exp_k = np.exp(split(q)), np.exp(split(k))
  exp_k = exp_k / exp_k.sum(1, keepdims=True)
  above = np.einsum("bqhd,bkhd,bkhe->bqhe", turn(exp_q), turn(exp_k), split(v))
  below = np.einsum("bqhd,bkhd->bqh", exp_q, exp_k)[..., None]
  np.testing.assert_allclose(got, (above / below).reshape(q.shape), atol=1e-5)


def test_linear_attention_for_tpus_has_the_same_values_and_gradients():
  arrays = queries_keys_values(6, 5)
  gradient = lambda for_tpu: in_numpy(jax.value_and_grad(
      lambda *qkv: jnp.sum(jnp.sin(linear_attention(*qkv, HEADS, for_tpu=for_tpu))), (0, 1, 2)))(*arrays)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(False), gradient(True))


def test_a_repeated_image_has_the_same_channel_weights():
  tile = np.random.default_rng(0).normal(size=(1, 4, 4, 6)).astype(np.float32)
  run = in_numpy(Reweighting().init_with_output)

  def middle(count):  # of so many tiles along each side, away from the borders, which a convolution sees
    out, _ = run(jax.random.key(0), np.tile(tile, (1, count, count, 1)))
    return out.reshape(count, 4, count, 4, -1)[count // 2, :, count // 2]

  small, large = middle(3), middle(5)
  np.testing.assert_allclose(small, large, atol=1e-5)
  assert np.abs(small - tile[0]).max() > 0.05
