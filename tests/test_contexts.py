"""Every context inherits these tests by being a file in mlic_jax/model/contexts/."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import CodecConfig
from mlic_jax.model import contexts
from mlic_jax.model.checkerboard import anchor_mask, pack
from mlic_jax.model.contexts.local_attention import nonanchor_windows

CONFIG = CodecConfig(N=8, M=12, num_slices=3, channel_widths=(8, 8), window_size=3)


def refs(k: int, h: int = 4, w: int = 8, seed: int = 0) -> contexts.Refs:
  cs, rng = CONFIG.slice_channels, np.random.default_rng(seed)
  live = np.arange(CONFIG.M) < k * cs
  decoded = jnp.asarray(rng.normal(size=(2, h, w, CONFIG.M)) * live, jnp.float32)
  anchors = (np.arange(h)[:, None] + np.arange(w)) % 2 == 1
  anchor = jnp.asarray(rng.normal(size=(2, h, w, cs)) * anchors[..., None], jnp.float32)
  hyper = jnp.asarray(np.random.default_rng(seed + 100).normal(size=(2, h, w, 2 * CONFIG.M)), jnp.float32)
  return contexts.Refs(k, hyper, decoded, jnp.asarray(live), decoded[..., max(k - 1, 0) * cs:][..., :cs], anchor)


@pytest.mark.parametrize("name", contexts.available())
def test_a_context_keeps_h_and_w_and_returns_its_features(name):
  context = contexts.make_context(name, CONFIG)
  out, _ = context.init_with_output(jax.random.key(0), refs(k=1))
  width = 4 if "anchor" in context.needs else 8  # packed when it speaks to the non-anchors
  assert out.shape == (2, 4, width, context.features)
  assert np.isfinite(out).all() and np.std(out) > 0


@pytest.mark.parametrize("name", contexts.available())
def test_a_context_treats_the_pictures_of_a_batch_apart(name):
  context, both = contexts.make_context(name, CONFIG), refs(k=2)
  variables = context.init(jax.random.key(0), both)
  alone = both._replace(**{field: getattr(both, field)[:1] for field in ("hyper", "decoded", "previous", "anchor")})
  np.testing.assert_allclose(context.apply(variables, alone), context.apply(variables, both)[:1], atol=1e-5)


@pytest.mark.parametrize("name", contexts.available())
def test_what_a_context_needs_is_what_it_looks_at(name):
  context, before = contexts.make_context(name, CONFIG), refs(k=2)
  variables, other = context.init(jax.random.key(0), before), refs(k=2, seed=1)
  out = context.apply(variables, before)
  for need, fields in (("decoded", ("decoded", "previous")), ("anchor", ("anchor",))):
    changed = context.apply(variables, before._replace(**{field: getattr(other, field) for field in fields}))
    assert np.array_equal(out, changed) == (need not in context.needs)


def nonanchors_that_hear(name: str, row: int, column: int) -> np.ndarray:
  """(h, w/2) bool: packed non-anchors whose features change with the anchor of this slice at (row, column)."""
  context, before = contexts.make_context(name, CONFIG), refs(k=2)
  variables = context.init(jax.random.key(0), before)
  after = before._replace(anchor=before.anchor.at[:, row, column].add(1.0))
  return np.abs(context.apply(variables, after) - context.apply(variables, before)).max((0, -1)) > 0


def nonanchors_within(distance: int, row: int, column: int, h: int = 4, w: int = 8) -> np.ndarray:
  """(h, w/2) bool: packed non-anchors so many steps, to neighbours in row or column, from (row, column)."""
  near = abs(np.arange(h)[:, None] - row) + abs(np.arange(w) - column) <= distance
  return np.asarray(pack(near[..., None], anchors=False))[..., 0]


@pytest.mark.parametrize("name, distance", [("local_checkerboard", 1), ("local_attention", 1), ("local_stacked", 3)])
def test_a_local_context_carries_an_anchor_to_the_nonanchors_around_it_alone(name, distance):
  assert CONFIG.window_size == 3  # one step at a time
  np.testing.assert_array_equal(nonanchors_that_hear(name, 1, 2), nonanchors_within(distance, 1, 2))


@pytest.mark.parametrize("name", [n for n in contexts.available() if n.startswith("global_intra")])
def test_an_intra_slice_global_context_carries_an_anchor_everywhere(name):
  assert nonanchors_that_hear(name, 1, 2).all()


def test_softmax_intra_context_says_nothing_of_a_picture_that_is_all_neighbourhood():
  context = contexts.make_context("global_intra_softmax", CONFIG)
  before, other = (refs(k=2, h=2, w=2, seed=seed) for seed in (0, 1))
  variables = context.init(jax.random.key(0), before)
  out = context.apply(variables, before)
  np.testing.assert_array_equal(out, context.apply(variables, before._replace(anchor=other.anchor)))
  assert np.isfinite(out).all()


@pytest.mark.parametrize("name", [n for n in contexts.available() if n.startswith("global_inter_") and "adj" not in n])
def test_inter_slice_heads_of_undecoded_slices_are_silent(name):
  context, now = contexts.make_context(name, CONFIG), refs(k=1)
  rng, initial = np.random.default_rng(0), context.init(jax.random.key(0), now)
  # As a training could leave them: at initialisation, kernels of undecoded channels are zero whoever speaks to them.
  variables = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), initial)

  def with_biases(channels):  # of the heads, which see nothing else where nothing is decoded
    changed = jax.tree.map(jnp.copy, variables)
    for part in ("queries", "keys", "values"):
      changed["params"][part]["depthwise"]["bias"] += jnp.where(channels, 5.0 + jnp.arange(CONFIG.M), 0.0)
    return context.apply(changed, now)

  np.testing.assert_array_equal(context.apply(variables, now), with_biases(~now.live))
  assert not np.allclose(context.apply(variables, now), with_biases(now.live))


def test_the_adjacent_context_takes_its_values_from_nonanchors_of_the_previous_slice():
  context, before, other = contexts.make_context("global_inter_adjacent", CONFIG), refs(k=2), refs(k=2, seed=1)
  variables = context.init(jax.random.key(0), before)
  silent = jax.tree.map(jnp.copy, variables)  # all scores are equal, so that only the values count
  silent["params"]["queries"] = jax.tree.map(jnp.zeros_like, silent["params"]["queries"])
  mask = anchor_mask(4, 8)[..., None]
  run = lambda previous, anchor: context.apply(silent, before._replace(previous=previous, anchor=anchor))
  out = run(before.previous, before.anchor)
  np.testing.assert_array_equal(out, run(jnp.where(mask, other.previous, before.previous), other.anchor))
  assert not np.allclose(out, run(jnp.where(mask, before.previous, other.previous), before.anchor))


def test_an_unknown_context_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match="no context 'chanel' in mlic_jax/model/contexts/; the nearest is 'channel'"):
    contexts.make_context("chanel", CONFIG)


def test_a_window_holds_the_neighbours_of_its_nonanchor_and_zeros_outside():
  x = np.arange(1, 17, dtype=np.float32).reshape(4, 4, 1)
  windows = nonanchor_windows(jnp.asarray(x), 3)[..., 0]
  np.testing.assert_array_equal(windows[0, 0], [0, 0, 0, 0, 1, 2, 0, 5, 6])       # around (0, 0)
  np.testing.assert_array_equal(windows[1, 0], [1, 2, 3, 5, 6, 7, 9, 10, 11])     # around (1, 1)
