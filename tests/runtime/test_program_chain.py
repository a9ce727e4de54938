"""A function as a chain of programs."""
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.config import CodecConfig
from mlic_jax.model import entropy_model
from mlic_jax.model.mlic import build, for_gradients
from mlic_jax.model.quantizers import NOISE
from mlic_jax.model.slices import Slices
from mlic_jax.runtime.program_chain import chain, own_program
from mlic_jax.runtime.program_split import split
from mlic_jax.training import parallel
from mlic_jax.training.parallel import AXIS

chained = functools.partial(chain, axis_name=AXIS)
WIDTHS = 4, 4, 4, 4, 8


@own_program
def layer(weights, x):
  return jnp.tanh(x @ weights)


def loss(weights, x):
  for each in weights:
    x = layer(each, x)
  return jnp.sum(x**2)


def step(state, x, factor):
  value, (gradient, of_x) = jax.value_and_grad(loss, (0, 1))(state["weights"], x)
  descend = own_program(lambda old, new: jax.tree.map(lambda a, b: a - factor * b, old, new))
  weights = descend(state["weights"], gradient)
  return dict(weights=weights, count=state["count"] + 1, seed=state["seed"]), dict(value=value, of_x=of_x, zero=0.0)


@pytest.fixture
def arguments():
  rng = np.random.default_rng(0)
  weights = [rng.normal(size=(1, *shape)).astype(np.float32) for shape in zip(WIDTHS, WIDTHS[1:])]
  state = dict(weights=weights, count=np.zeros(1, np.int32), seed=np.arange(2, dtype=np.uint32)[None])
  return jax.tree.map(jnp.array, state), rng.normal(size=(1, 3, WIDTHS[0])).astype(np.float32), np.float32(0.1)


def assert_close(found, wanted):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)


def test_a_chain_has_the_results_of_the_pmapped_function(arguments):
  axes = (0, 0, None)
  pmapped, run = jax.pmap(step, axis_name=AXIS, in_axes=axes), chained(step, in_axes=axes)
  wanted = pmapped(*arguments)
  assert_close(run(*arguments), wanted)
  state, *others = wanted[0], *arguments[1:]
  assert_close(run(state, *others), pmapped(state, *others))   # arrays of jax.pmap


def test_calls_with_the_same_shapes_share_a_program_in_the_gradient_as_well(arguments):
  compiled = chained(step, in_axes=(0, 0, None)).lower(*arguments).compile()
  names = [text.split(",")[0] for text in (each.as_text() for each in compiled.programs)]
  of_layers = [name for name in names if name.endswith("layer")]
  used = [call.program for call in compiled.calls if names[call.program] in of_layers]
  # Forward and backward. The first layer removes the axis of devices, and the last one has another shape.
  assert sorted(map(used.count, set(used))) == [1, 1, 1, 1, 2, 2]


def test_a_result_that_a_later_program_reads_is_kept():
  def twice(x):
    first = layer(jnp.eye(4), x)
    return first, layer(jnp.eye(4), first)
  plan = split(jax.make_jaxpr(twice)(np.ones((2, 4), np.float32)), {0})
  first, _ = plan.results
  assert first in plan.calls[-1].inputs and first not in plan.calls[-1].last
  assert plan.donated[plan.calls[-1].program] == ()


def test_a_call_in_a_loop_is_a_part_of_its_program():
  def looped(x):
    return jax.lax.scan(lambda x, weights: (layer(weights, x), None), x, jnp.ones((3, 4, 4)))[0]
  x = np.ones((1, 2, 4), np.float32)
  compiled = chained(looped).lower(x).compile()
  assert len(compiled.programs) == 1
  assert_close(compiled(x), looped(x[0])[None])


def test_donated_arguments_are_used_up_and_others_stay(arguments):
  wanted = jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None))(*arguments)
  run, (state, x, factor) = chained(step, donate_state=True, in_axes=(0, 0, None)), arguments
  x = jnp.array(x)
  assert_close(run(state, x, factor), wanted)
  assert all(each.is_deleted() for each in state["weights"]) and not x.is_deleted()


def test_the_first_state_of_a_run_may_be_dropped_while_its_step_runs():
  def slow(state, x):
    for _ in range(8):
      x = own_program(lambda x: jnp.tanh(x @ x))(x)
    return state + x[0, 0], x
  run = chained(slow, donate_state=True)
  x = np.ones((1, 400, 400), np.float32) / 400
  for _ in range(5):  # the memory of the state is free for others as soon as it is given away
    state = run(parallel.replicate(np.full(2**18, 7.0, np.float32)), x)[0]
    np.testing.assert_array_equal(np.asarray(state)[0, :10], np.asarray(state)[0, 0])
    assert 7 <= np.asarray(state).max() <= 8


def test_a_pickled_chain_computes_the_same(arguments):
  compiled = chained(step, in_axes=(0, 0, None)).lower(*arguments).compile()
  again = pickle.loads(pickle.dumps(compiled))
  jax.tree.map(np.testing.assert_array_equal, again(*arguments), compiled(*arguments))


def test_arguments_of_another_structure_are_refused_in_one_line(arguments):
  compiled = chained(step, in_axes=(0, 0, None)).lower(*arguments).compile()
  with pytest.raises(TypeError, match=r"^the program got arguments of the structure .*; wanted ") as error:
    compiled(arguments[0]["weights"], *arguments[1:])
  assert "\n" not in str(error.value)


def test_lowered_chains_with_the_same_programs_have_the_same_text(arguments):
  lowered = [chained(step, in_axes=(0, 0, None)).lower(*arguments) for _ in range(2)]
  assert lowered[0].as_text() == lowered[1].as_text()
  other = chained(lambda *args: step(*args)[::-1], in_axes=(0, 0, None)).lower(*arguments)
  assert other.as_text() != lowered[0].as_text()
  for each in (*lowered, other):
    each.cancel()


def test_pairs_of_slices_share_their_programs_and_have_the_gradient_of_the_scan():
  config = CodecConfig.from_dict(dict(N=4, M=12, num_slices=6, contexts=("channel",), channel_widths=(4,),
                                      entropy_widths=(4,), lrp_widths=()))
  rng = np.random.default_rng(0)
  y, hyper = rng.normal(size=(1, 4, 4, 12)).astype(np.float32), rng.normal(size=(1, 4, 4, 24)).astype(np.float32)
  params = entropy_model.init(config, jax.random.PRNGKey(0))

  def gradient(params, y, hyper, **options):
    def bits(params, y, hyper):
      coded = Slices(config, **options).apply({"params": params}, hyper, y, NOISE, jnp.zeros_like(y), method="scan")
      return coded.bits.sum() + coded.y_hat.sum()
    return jax.value_and_grad(bits, (0, 1, 2))(params, y, hyper)

  own = for_gradients(build(config), "cpu", own_programs=True)
  in_programs = functools.partial(gradient, scan_groups=own.scan_groups, own_programs=own.own_programs)
  args = jax.tree.map(lambda leaf: leaf[None], (params, y, hyper))
  compiled = chained(in_programs).lower(*args).compile()
  of_slices = [i for i, each in enumerate(compiled.programs) if "_run_slice" in each.as_text().split(",")[0]]
  calls = [call.program for call in compiled.calls]
  assert own.scan_groups == (1, 1, 2, 2)
  assert sorted(map(calls.count, of_slices)) == [1, 1, 1, 1, 2, 2, 2, 2]   # forward and backward
  wanted = jax.jit(functools.partial(gradient, scan_unroll=1))(params, y, hyper)
  assert_close(jax.tree.map(lambda leaf: leaf[0], compiled(*args)), wanted)
