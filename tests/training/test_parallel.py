"""Tests of programs over all devices with compiler options."""
import jax
import numpy as np
import pytest

from mlic_jax.training import parallel, pmap_programs, step

COUNT = jax.local_device_count()


def doubled(state, batch):
  return state + 1, jax.lax.psum(batch.sum(), parallel.AXIS)


@pytest.fixture
def program():
  """Compiled quickly for small batches, and not at all for large ones."""
  options = lambda _, batch: {"xla_backend_optimization_level": 0} if batch.shape[1] < 8 else {"xla_unknown": True}
  return parallel.pmap_over_batch(doubled, donate_state=True, compiler_options=options)


def test_a_program_with_options_computes_what_one_without_does_and_takes_the_memory_of_its_state(program):
  plain = parallel.pmap_over_batch(doubled)
  batch = np.arange(COUNT * 4, dtype=np.float32).reshape(COUNT, 4)
  expected = plain(jax.numpy.zeros((COUNT, 2)), batch)
  state = parallel.replicate(np.zeros(2, np.float32))
  for _ in range(2):
    old, (state, total) = state, program(state, batch)
    assert old.is_deleted() and np.array_equal(total, expected[1])
  assert np.array_equal(state, expected[0] + 1)


def test_the_options_are_those_for_the_arguments_and_reach_the_compiler(program):
  state = parallel.replicate(np.zeros(2, np.float32))
  with pytest.raises(jax.errors.JaxRuntimeError, match="xla_unknown"):
    program(state, np.zeros((COUNT, 8), np.float32))
  with pytest.raises(jax.errors.JaxRuntimeError, match="xla_unknown"):
    program.lower(state, np.zeros((COUNT, 8), np.float32)).compile()


def test_a_step_and_the_first_state_compile_with_fewer_optimizations_on_cpu_unless_a_level_is_chosen(monkeypatch):
  def options_of_the_state(function, name, key, compiler_options):
    return lambda: compiler_options

  monkeypatch.setattr(step, "with_executable_cache", options_of_the_state)
  monkeypatch.setenv("XLA_FLAGS", "")
  options = pmap_programs.CompilerOptions(jax.devices("cpu")[0])
  batch = jax.ShapeDtypeStruct((1, 8, 64, 64, 3), np.uint8)
  few = jax.config.values["jax_disable_most_optimizations"]
  try:
    jax.config.update("jax_disable_most_optimizations", False)
    assert options(None, batch) == {"xla_backend_optimization_level": 1}
    assert step.create_state(None, None, None)["xla_backend_optimization_level"] == 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert options(None, batch) == step.create_state(None, None, None) == {}
    monkeypatch.setenv("XLA_FLAGS", "")
    jax.config.update("jax_disable_most_optimizations", True)
    assert options(None, batch) == step.create_state(None, None, None) == {}
  finally:
    jax.config.update("jax_disable_most_optimizations", few)
  assert " at 0x" not in repr(options)   # it is part of the key of programs on disk
