"""Every context inherits these tests by being a file in mlic_jax/contexts/."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax import contexts
from mlic_jax.config import CodecConfig
from mlic_jax.contexts.local_attention import nonanchor_windows

CONFIG = CodecConfig(N=8, M=12, num_slices=3, channel_widths=(8, 8), window_size=3)


def refs(k: int, h: int = 4, w: int = 8, seed: int = 0) -> contexts.Refs:
  cs, rng = CONFIG.slice_channels, np.random.default_rng(seed)
  live = np.arange(CONFIG.M) < k * cs
  decoded = jnp.asarray(rng.normal(size=(2, h, w, CONFIG.M)) * live, jnp.float32)
  anchors = (np.arange(h)[:, None] + np.arange(w)) % 2 == 1
  anchor = jnp.asarray(rng.normal(size=(2, h, w, cs)) * anchors[..., None], jnp.float32)
  return contexts.Refs(k, decoded, jnp.asarray(live), decoded[..., max(k - 1, 0) * cs:][..., :cs], anchor)


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
  alone = both._replace(**{field: getattr(both, field)[:1] for field in ("decoded", "previous", "anchor")})
  np.testing.assert_allclose(context.apply(variables, alone), context.apply(variables, both)[:1], atol=1e-5)


@pytest.mark.parametrize("name", contexts.available())
def test_what_a_context_needs_is_what_it_looks_at(name):
  context, before = contexts.make_context(name, CONFIG), refs(k=2)
  variables, other = context.init(jax.random.key(0), before), refs(k=2, seed=1)
  out = context.apply(variables, before)
  for need, fields in (("decoded", ("decoded", "previous")), ("anchor", ("anchor",))):
    changed = context.apply(variables, before._replace(**{field: getattr(other, field) for field in fields}))
    assert np.array_equal(out, changed) == (need not in context.needs)


def test_an_unknown_context_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match="no context 'chanel'.*nearest is 'channel'"):
    contexts.make_context("chanel", CONFIG)


def test_a_window_holds_the_neighbours_of_its_nonanchor_and_zeros_outside():
  x = np.arange(1, 17, dtype=np.float32).reshape(4, 4, 1)
  windows = nonanchor_windows(jnp.asarray(x), 3)[..., 0]
  np.testing.assert_array_equal(windows[0, 0], [0, 0, 0, 0, 1, 2, 0, 5, 6])       # around (0, 0)
  np.testing.assert_array_equal(windows[1, 0], [1, 2, 3, 5, 6, 7, 9, 10, 11])     # around (1, 1)
