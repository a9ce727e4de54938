"""Tests of all contexts in mlic_jax/model/contexts/; a new file there is tested without changes here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.in_numpy import in_numpy
from helpers.other_options import other_options

from mlic_jax.config import CodecConfig
from mlic_jax.model import contexts
from mlic_jax.model.checkerboard import anchor_mask, pack
from mlic_jax.model.contexts.local_attention import nonanchor_windows
from mlic_jax.model.lazy_params import without_initializers
from mlic_jax.model.mlic import build

CONFIG = CodecConfig(N=8, M=24, num_slices=3, channel_widths=(8, 8), window_size=3)


def settings(name: str) -> list[tuple[str, tuple]]:
  """A context as it is without options, and, where it has any, with every one of them another value."""
  switched = tuple(other_options(contexts.find(name)).items())
  return [(name, ()), (name, switched)] if switched else [(name, ())]


CASES = [case for name in contexts.available() for case in settings(name)]
# The one that is guided by the hyperprior looks at anchors when it is switched.
INTRA = [case for case in CASES if case[0].startswith("global_intra") and case != ("global_intra_hyper", ())]
ids = lambda value: value if isinstance(value, str) else ",".join(f"{option}={on}" for option, on in value) or "plain"
every_context = pytest.mark.parametrize("name, options", CASES, ids=ids)


@functools.cache
def made(name: str, options: tuple = ()):
  """A context, its output at slice 2 and random variables of it, and its `apply`, by NumPy."""
  context, inputs = contexts.make_context(name, dataclasses.replace(CONFIG, options=options)), inputs_of(k=2)
  rng = np.random.default_rng(0)

  def draw(path, leaf):  # as a training could leave it; initial kernels of undecoded channels are zero
    spread = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
    return np.asarray(spread + (path[-1].key == "scale"), np.float32)

  with without_initializers():
    shapes = jax.eval_shape(lambda key: context.init(key, inputs), jax.random.key(0))
  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  apply = applied(context)
  return context, apply(variables, inputs), variables, apply


def applied(context):
  """The `apply` of a context, traced once for each slice."""
  @functools.cache
  def at(k):
    return in_numpy(lambda variables, *arrays: context.apply(variables, inputs_at(k, *arrays)))
  return lambda variables, inputs: at(inputs.k)(variables, *arrays_of(inputs))


def arrays_of(inputs: contexts.ContextInputs) -> tuple:
  return inputs.hyper, inputs.decoded, inputs.previous, inputs.anchor


def inputs_at(k: int, hyper, decoded, previous, anchor, for_tpu: bool = False) -> contexts.ContextInputs:
  live = jnp.asarray(np.arange(CONFIG.M) < k * CONFIG.slice_channels)
  return contexts.ContextInputs(k, hyper, decoded, live, previous, anchor, for_tpu)


def inputs_of(k: int, seed: int = 0) -> contexts.ContextInputs:
  h, w, cs, rng = 4, 8, CONFIG.slice_channels, np.random.default_rng(seed)
  live = np.arange(CONFIG.M) < k * cs
  decoded = np.float32(rng.normal(size=(2, h, w, CONFIG.M)) * live)
  anchors = (np.arange(h)[:, None] + np.arange(w)) % 2 == 1
  anchor = np.float32(rng.normal(size=(2, h, w, cs)) * anchors[..., None])
  hyper = np.float32(np.random.default_rng(seed + 100).normal(size=(2, h, w, 2 * CONFIG.M)))
  return inputs_at(k, hyper, decoded, decoded[..., max(k - 1, 0) * cs:][..., :cs], anchor)


@every_context
def test_a_context_keeps_h_and_w_and_returns_its_features(name, options):
  context, out, *_ = made(name, options)
  width = 4 if "anchor" in context.needs else 8  # packed when it speaks to the non-anchors
  assert out.shape == (2, 4, width, context.features)
  assert np.isfinite(out).all() and np.std(out) > 0


@every_context
def test_a_context_treats_the_images_of_a_batch_independently(name, options):
  (_, _, variables, apply), both, other = made(name, options), inputs_of(k=2), inputs_of(k=2, seed=1)
  fields = "hyper", "decoded", "previous", "anchor"
  changed = both._replace(**{field: np.stack([getattr(both, field)[0], getattr(other, field)[1]]) for field in fields})
  out, then = apply(variables, both), apply(variables, changed)
  np.testing.assert_array_equal(out[0], then[0])
  assert not np.allclose(out[1], then[1])


@every_context
def test_a_context_depends_on_its_needs_only(name, options):
  (context, _, variables, apply), before, other = made(name, options), inputs_of(k=2), inputs_of(k=2, seed=1)
  out = apply(variables, before)
  for need, fields in (("decoded", ("decoded", "previous")), ("anchor", ("anchor",))):
    changed = apply(variables, before._replace(**{field: getattr(other, field) for field in fields}))
    assert np.array_equal(out, changed) == (need not in context.needs)


def nonanchors_that_hear(name: str, row: int, column: int, options: tuple = ()) -> np.ndarray:
  """(h, w/2) bool: packed non-anchors whose features change with the anchor of this slice at (row, column)."""
  (_, _, variables, apply), before = made(name, options), inputs_of(k=2)
  after = before._replace(anchor=before.anchor.copy())
  after.anchor[:, row, column] += 1.0
  return np.abs(apply(variables, after) - apply(variables, before)).max((0, -1)) > 0


def nonanchors_within(distance: int, row: int, column: int, h: int = 4, w: int = 8) -> np.ndarray:
  """(h, w/2) bool: packed non-anchors so many steps, to neighbors in row or column, from (row, column)."""
  near = abs(np.arange(h)[:, None] - row) + abs(np.arange(w) - column) <= distance
  return np.asarray(pack(near[..., None], anchors=False))[..., 0]


@pytest.mark.parametrize("name, distance", [("local_checkerboard", 1), ("local_attention", 1), ("local_stacked", 3)])
def test_a_local_context_carries_an_anchor_to_the_nonanchors_around_it_alone(name, distance):
  assert CONFIG.window_size == 3  # one step at a time
  np.testing.assert_array_equal(nonanchors_that_hear(name, 1, 2), nonanchors_within(distance, 1, 2))


@pytest.mark.parametrize("name, options", INTRA, ids=ids)
def test_an_intra_slice_global_context_carries_an_anchor_everywhere(name, options):
  assert nonanchors_that_hear(name, 1, 2, options).all()


def test_hyper_features_of_any_position_reach_every_position_of_the_first_slice():
  (_, _, variables, apply), before = made("global_intra_hyper"), inputs_of(k=0)
  after = before._replace(hyper=before.hyper.copy())
  after.hyper[:, 1, 2, CONFIG.M:] += 1.0
  assert (np.abs(apply(variables, after) - apply(variables, before)).max((0, -1)) > 0).all()


def test_softmax_intra_context_is_zero_if_all_anchors_are_masked():
  name, before, other = "global_intra_softmax", inputs_of(k=2), inputs_of(k=2, seed=1)
  apply, variables = applied(contexts.make_context(name, dataclasses.replace(CONFIG, window_size=15))), made(name)[2]
  out = apply(variables, before)
  np.testing.assert_array_equal(out, apply(variables, before._replace(anchor=other.anchor)))
  assert np.isfinite(out).all()


@pytest.mark.parametrize("name", [n for n in contexts.available() if n.startswith("global_inter_") and "adj" not in n])
def test_inter_slice_heads_of_undecoded_slices_are_zero(name):
  (_, _, variables, apply), now = made(name), inputs_of(k=1)

  def with_biases(channels):  # of the heads, which see nothing else where nothing is decoded
    changed = jax.tree.map(np.copy, variables)
    for part in ("queries", "keys", "values"):
      changed["params"][part]["depthwise"]["bias"] += np.float32(np.where(channels, 5.0 + np.arange(CONFIG.M), 0.0))
    return apply(changed, now)

  np.testing.assert_array_equal(apply(variables, now), with_biases(~np.asarray(now.live)))
  assert not np.allclose(apply(variables, now), with_biases(np.asarray(now.live)))


def test_the_adjacent_context_takes_its_values_from_nonanchors_of_the_previous_slice():
  (_, _, variables, apply), before, other = made("global_inter_adjacent"), inputs_of(k=2), inputs_of(k=2, seed=1)
  silent = jax.tree.map(np.copy, variables)  # all scores are equal, so that only the values count
  silent["params"]["queries"] = jax.tree.map(np.zeros_like, silent["params"]["queries"])
  mask = np.asarray(anchor_mask(4, 8))[..., None]
  run = lambda previous, anchor: apply(silent, before._replace(previous=previous, anchor=anchor))
  out = run(before.previous, before.anchor)
  np.testing.assert_array_equal(out, run(np.where(mask, other.previous, before.previous), other.anchor))
  assert not np.allclose(out, run(np.where(mask, before.previous, other.previous), before.anchor))


def test_an_unknown_context_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match="no context 'chanel' in mlic_jax/model/contexts/; the nearest is 'channel'"):
    contexts.make_context("chanel", CONFIG)


def test_rotary_positions_in_slices_of_too_few_channels_are_refused():
  few = dataclasses.replace(CONFIG, M=12, contexts=("local_attention",), options=dict(rotary=True))
  with pytest.raises(ValueError, match="^M / num_slices = 4 channels per slice; rotary positions want 8 or more$"):
    build(few)


def test_a_window_holds_the_neighbors_of_its_nonanchor_and_zeros_outside():
  x = np.arange(1, 17, dtype=np.float32).reshape(4, 4, 1)
  windows = in_numpy(lambda x: nonanchor_windows(x, 3))(x)[..., 0]
  np.testing.assert_array_equal(windows[0, 0], [0, 0, 0, 0, 1, 2, 0, 5, 6])       # around (0, 0)
  np.testing.assert_array_equal(windows[1, 0], [1, 2, 3, 5, 6, 7, 9, 10, 11])     # around (1, 1)


@pytest.mark.parametrize("h, w, size", [(6, 8, 5), (5, 4, 3), (1, 2, 7)])
def test_windows_are_those_around_the_nonanchors_row_by_row(h, w, size):
  x = np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)
  around = size // 2
  padded = np.pad(x, ((0, 0), (around, around), (around, around), (0, 0)))
  wanted = [[padded[:, row:row + size, column:column + size].reshape(2, size**2, 3) for column in range(row % 2, w, 2)]
            for row in range(h)]
  windows = in_numpy(lambda x: nonanchor_windows(x, size))(x)
  np.testing.assert_array_equal(windows, np.moveaxis(np.asarray(wanted), 2, 0))


@every_context
def test_a_context_for_tpus_has_the_same_values_and_gradients(name, options):
  (context, out, variables, _), inputs = made(name, options), inputs_of(k=2)
  up = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)

  def gradient(for_tpu):
    def product(variables, *arrays):
      return jnp.vdot(context.apply(variables, inputs_at(2, *arrays, for_tpu=for_tpu)), up)

    return in_numpy(jax.value_and_grad(product, range(5)))(variables, *arrays_of(inputs))

  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, gradient(False), gradient(True))


@every_context
def test_the_inputs_of_a_context_may_be_arguments_of_a_compiled_function(name, options):
  (context, out, variables, _), inputs = made(name, options), inputs_of(k=1)
  run = lambda variables, inputs: context.apply(variables, inputs._replace(k=1))
  assert jax.eval_shape(run, variables, inputs).shape == out.shape
