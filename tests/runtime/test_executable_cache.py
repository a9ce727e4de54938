"""Tests of executables on disk: found by the inputs of tracing, and not after these have changed."""
import collections
import functools
import gc
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY, random_variables
from helpers.distribution_cases import SMALL
from helpers.forked_programs import Program, run_forks
from helpers.linear_stub import StandIn
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from test_lowering import small_config  # noqa: F401  a fixture

from mlic_jax.coding import jit_functions
from mlic_jax.coding.background_compile import decoder_compiled_in_background
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.config import CodecConfig
from mlic_jax.model import registry
from mlic_jax.model.mlic import build
from mlic_jax.runtime import executable_cache, shape_cache, startup
from mlic_jax.training import pmap_programs
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.preemption import NO_SIGNALS
from mlic_jax.training.step import make_train_step, state_shapes

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="folder")
def program_folder(tmp_path, monkeypatch):
  """The folder of the programs, in a process as of the command line, in which jax has none in a cache of its own."""
  monkeypatch.setenv("MLIC_JAX_CACHE", str(tmp_path))
  set_code(monkeypatch, "as it is now")
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()      # jax looks at the setting once
  yield tmp_path / "programs"
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()


def set_code(monkeypatch, digest, on_disk=None):
  monkeypatch.setattr(startup, "code", digest)
  monkeypatch.setattr(startup, "digest_of_code", lambda: on_disk or digest)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """The directory of a model without contexts, whose functions compile fast."""
  path = tmp_path_factory.mktemp("checkpoints") / "small"
  save_model(path, SMALL, random_variables(SMALL))
  return path


@pytest.fixture(name="scaled")
def as_in_a_new_process():
  """scaled(x, by) -> by * x, by a program that is not in memory; and the traced arguments."""
  traced = []

  def scaled(x, by=3.0, described="", **options):
    def multiply(x):
      traced.append(by)
      return by * x
    return executable_cache.with_executable_cache(multiply, "multiply", described, **options)(x)
  return scaled, traced


def programs(folder):
  return [each for each in folder.iterdir() if not each.is_symlink()]


def test_a_program_that_is_found_is_not_traced(folder, scaled):
  scaled, traced = scaled
  for _ in range(3):
    np.testing.assert_array_equal(scaled(np.ones(4, np.float32)), np.full(4, 3.0))
  assert traced == [3.0] and len(programs(folder)) == 1


def test_a_part_of_another_program_is_traced_there(folder):
  tripled = executable_cache.with_executable_cache(lambda x: 3 * x, "triple", "")
  assert tripled(np.float32(2)) == 6          # whose program is at hand now
  assert jax.eval_shape(tripled, np.float32(2)).shape == () and jax.jit(lambda x: tripled(x) + 1)(np.float32(3)) == 10


def test_programs_differ_by_the_inputs_of_tracing(folder, scaled, monkeypatch):
  scaled, traced = scaled
  x = np.ones(4, np.float32)
  scaled(x)
  for other in (lambda: scaled(np.ones(5, np.float32)), lambda: scaled(np.ones(4, np.int32)), lambda: scaled(x[None]),
                lambda: scaled(x, by=4.0, described="four"), lambda: scaled(x, inline=True)):
    before = len(traced)
    other()
    assert len(traced) == before + 1
  with jax.default_matmul_precision("highest"):
    scaled(x)
  monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " ")
  scaled(x)
  assert len(traced) == 8


def test_changed_code_is_traced_and_compiled_only_where_it_lowers_to_something_else(folder, scaled, monkeypatch):
  scaled, traced = scaled
  x = np.ones(4, np.float32)
  scaled(x)
  set_code(monkeypatch, "with another comment")
  scaled(x)
  assert len(traced) == 2 and len(programs(folder)) == 1
  set_code(monkeypatch, "with another number")
  np.testing.assert_array_equal(scaled(x, by=5.0), np.full(4, 5.0))
  assert len(traced) == 3 and len(programs(folder)) == 2


def test_programs_that_read_the_same_are_told_apart_by_what_they_leave_out(folder, monkeypatch):
  """Arguments that nothing depends on, and how the results are put together."""
  x, y = np.ones(2, np.float32), np.full(2, 10, np.float32)
  cached = lambda function, *args: executable_cache.with_executable_cache(function, "chosen", "")(*args)
  np.testing.assert_array_equal(cached(lambda x, y: 2 * x, x, y), 2 * x)
  set_code(monkeypatch, "which takes the other one")
  np.testing.assert_array_equal(cached(lambda x, y: 2 * y, x, y), 2 * y)
  set_code(monkeypatch, "with more in a tree that it does not use")
  np.testing.assert_array_equal(cached(lambda x, y: 2 * y[0], x, (y, x[:1])), 2 * y)
  np.testing.assert_array_equal(cached(lambda x, y: 2 * y[0], x, (y, x)), 2 * y)
  assert set(cached(lambda x, y: {"a": x}, x, y)) == {"a"}
  set_code(monkeypatch, "with a field more")
  assert set(cached(lambda x, y: {"a": x, "b": None}, x, y)) == {"a", "b"}


def test_two_models_of_which_a_program_takes_the_same_parameters(folder, monkeypatch):
  other = SMALL.from_dict(SMALL.to_dict() | {"lrp_widths": [18]})
  z = np.zeros((1, 1, 1, SMALL.N), np.float32)
  for config in (SMALL, other, SMALL):
    variables = random_variables(config)
    round_z = shape_cache.ShapeCache(jit_functions.round_z._function, size=3, module=0, describe=registry.description)
    symbols, finite = round_z(build(config), variables, z, z)
    assert finite and symbols.shape == z.shape
  assert len(programs(folder)) == 2


def test_a_file_with_a_class_that_is_gone_is_compiled_again(folder, monkeypatch):
  module = sys.modules[__name__]
  pair = collections.namedtuple("Pair", "a b")
  pair.__module__ = __name__
  monkeypatch.setattr(module, "Pair", pair, raising=False)
  def double():
    return executable_cache.with_executable_cache(lambda x: pair(2 * x, x), "double", "")(np.ones(2, np.float32))
  double()
  monkeypatch.delattr(module, "Pair")
  np.testing.assert_array_equal(double().a, [2, 2])


def test_code_that_was_edited_since_the_start_is_not_the_imported_code(folder, scaled, monkeypatch):
  scaled, traced = scaled
  set_code(monkeypatch, "at the start", on_disk="by now")
  for _ in range(2):
    scaled(np.ones(4, np.float32))
  assert len(traced) == 2


def test_the_digest_of_the_code_leaves_out_what_editors_put_there_and_counts_names(monkeypatch, tmp_path):
  monkeypatch.setattr(startup, "PACKAGE", tmp_path)
  assert startup.digest_of_code() is None
  (tmp_path / "a.py").write_text("x")
  before = startup.digest_of_code()
  (tmp_path / ".#a.py").symlink_to("nobody@host.123")
  assert startup.digest_of_code() == before
  (tmp_path / "a.py").rename(tmp_path / "b.py")
  assert startup.digest_of_code() not in (None, before)


def test_nothing_is_cached_outside_of_the_command_line_or_without_a_description(folder, scaled, monkeypatch):
  scaled, traced = scaled
  x = np.ones(4, np.float32)
  scaled(x, described=None)
  partial = jax.tree_util.Partial(lambda: 1)      # prints with an address
  executable_cache.with_executable_cache(lambda x, partial: x * partial(), "called", "")(x, partial)
  for setting in ("jax_debug_nans", "jax_disable_jit"):
    jax.config.update(setting, True)
    try:
      scaled(x)
    finally:
      jax.config.update(setting, False)
  with monkeypatch.context() as several:
    several.setattr(jax, "device_count", lambda: 2)
    scaled(x)
  monkeypatch.setenv("MLIC_JAX_CACHE", str(folder.parent / "file"))
  (folder.parent / "file").touch()
  scaled(x)
  monkeypatch.setattr(startup, "code", None)
  scaled(x)
  assert len(traced) == 6 and not list(folder.iterdir())


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:-9], lambda content: b"?" + content[1:],
    lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:]], ids=["empty", "cut", "head", "a bit"])
def test_a_damaged_file_is_compiled_and_written_again(folder, scaled, damage):
  scaled, traced = scaled
  x = np.ones(4, np.float32)
  scaled(x)
  path, = programs(folder)
  whole = path.read_bytes()
  path.write_bytes(damage(whole))
  np.testing.assert_array_equal(scaled(x), np.full(4, 3.0))
  scaled(x)
  assert len(traced) == 2 and len(path.read_bytes()) > 100


def test_the_folder_is_bounded_and_what_was_used_last_stays(folder, scaled, monkeypatch):
  scaled, traced = scaled
  for side in range(1, 6):
    scaled(np.ones(side, np.float32))
    os.utime(max(programs(folder), key=lambda each: each.stat().st_mtime), (side, side))
  for each in folder.iterdir():
    if each.is_symlink():
      os.utime(each, (0, 0), follow_symlinks=False)   # a link is as old as its making
  size = max(each.stat().st_size for each in programs(folder))
  scaled(np.ones(1, np.float32))                    # which is read, and so the newest
  monkeypatch.setattr(executable_cache, "MAX_BYTES", 3 * size + 500)
  scaled(np.ones(6, np.float32))
  assert len(programs(folder)) <= 3
  del traced[:]
  scaled(np.ones(1, np.float32))
  scaled(np.ones(6, np.float32))
  assert not traced
  scaled(np.ones(2, np.float32))
  assert len(traced) == 1


def test_a_loop_with_a_condition_on_its_length_computes_the_same_from_disk(folder):
  def powers(x, length):
    step = lambda i, y: jax.lax.cond(i < length, lambda: x @ y, lambda: y)
    return jax.lax.fori_loop(0, 3, step, np.eye(2, dtype=np.float32))

  x, traced = np.array([[0, 2], [3, 0]], np.float32), []
  for _ in range(2):                                # compiled, then loaded
    counted = lambda *args: (traced.append(args), powers(*args))[1]
    run = executable_cache.with_executable_cache(counted, "powers", "")
    for length in range(4):
      np.testing.assert_array_equal(run(x, np.int32(length)), np.linalg.matrix_power(x, length))
  assert len(traced) == 1


def test_of_threads_that_want_a_program_one_compiles_it_and_the_others_wait(folder, monkeypatch):
  written, together = [], threading.Barrier(2)
  monkeypatch.setattr(executable_cache, "_write", lambda path, _: written.append(path))

  @shape_cache.shape_cached(size=0, static=1)
  def powers(x, steps):
    time.sleep(0.1)                                 # who does not wait begins here
    return functools.reduce(lambda power, _: x @ power, range(steps), x)

  def work():
    together.wait()
    np.testing.assert_array_equal(powers(np.eye(3, dtype=np.float32), 20), np.eye(3))

  with ThreadPoolExecutor(2) as threads:
    [each.result() for each in [threads.submit(work) for _ in range(2)]]
  assert len(written) == 1


def test_a_decoder_is_compiled_in_a_thread_and_not_again(folder, checkpoint, photograph, monkeypatch):
  codec, image, traced, here = Codec.load(checkpoint), photograph[:64, :64], [], threading.get_ident()
  functions = {name: getattr(jit_functions, name) for name in ("start", "nonanchors", "advance", "finish")}

  def noted(name, function):
    def call(*args):
      traced.append((name, threading.get_ident() == here))
      return function(*args)
    return call

  def as_in_a_new_process():
    for function in vars(jit_functions).values():
      if isinstance(function, shape_cache.ShapeCache):
        monkeypatch.setattr(function, "_cache", collections.OrderedDict())

  for name, function in functions.items():
    monkeypatch.setattr(function, "_function", noted(name, function._function))
  as_in_a_new_process()
  with decoder_compiled_in_background(codec, 64, 64):
    pass
  assert traced == [(name, False) for name in functions]
  blob, picture = codec.encode_with_reconstruction(image)
  np.testing.assert_array_equal(codec.decode(blob), picture)
  as_in_a_new_process()
  with decoder_compiled_in_background(codec, 64, 64):          # which has nothing to do
    np.testing.assert_array_equal(codec.decode(blob), picture)
  assert len(traced) == 4


def test_an_error_in_the_compile_thread_is_reported_for_the_image():
  class Failing:
    def tile_side(self, height, width):
      return None

    @property
    def config(self):
      raise MemoryError("for the decoder")

  with pytest.raises(MemoryError, match="for the image"), decoder_compiled_in_background(Failing(), 64, 64):
    raise MemoryError("for the image")
  with decoder_compiled_in_background(Failing(), 64, 64):      # that alone stops nothing
    pass


def test_executables_from_disk_are_freed_as_compiled_ones(folder, monkeypatch):
  monkeypatch.setattr(shape_cache, "MAX_SIZES", 2)
  gc.freeze()  # what other tests have left, among which a collection would search for seconds
  traced = []

  def again():
    @shape_cache.shape_cached(size=0)
    def doubled_again(x):
      traced.append(x.shape)
      return 2 * x
    for side in (*range(1, 7), 5, 6):
      np.testing.assert_array_equal(doubled_again(np.ones(side, np.float32)), np.full(side, 2.0))
    gc.collect()
    held = [each.hlo_modules()[0].name for each in jax.devices()[0].client.live_executables()]
    return held.count("jit_cached_doubled_again")

  compiled = again()
  assert compiled == 2 and len(traced) == 6
  gc.collect()
  read = again()
  assert read == 2 and len(traced) == 6


def test_a_custom_module_is_never_cached():
  assert registry.description(build(TINY)) == repr(build(TINY)) != registry.description(build(CodecConfig()))
  for own in dict(contexts=["mlic_jax.model.contexts.channel"]), dict(transforms="mlic_jax.model.transforms.elic"):
    assert registry.description(build(TINY.from_dict(TINY.to_dict() | own))) is None  # by import paths


def test_a_training_step_comes_back_with_the_names_of_its_figures(folder, config):
  config = config.copy_and_resolve_references()
  config.model = dict(N=4, M=8, num_slices=2, num_rates=2)
  codec = CodecConfig(**config.model)
  traced = []

  def first_step(**changes):
    changed = config.copy_and_resolve_references()
    changed.update(changes)
    model, optimizer = StandIn(codec), make_optimizer(changed)
    step = make_train_step(changed, model, optimizer, None, "cpu")
    count = jax.device_count()
    state = jax.tree.map(lambda leaf: np.full((count, *leaf.shape), 0.1).astype(leaf.dtype),
                         state_shapes(changed, model, optimizer))
    counted = functools.wraps(step)(lambda *args: (traced.append(changes), step(*args))[1])
    run = pmap_programs.training(counted, key=pmap_programs.cache_key(changed, model))
    state, metrics, _ = run(state, np.zeros((count, 2, 64, 64, 3), np.uint8), None, NO_SIGNALS)
    (names, values), = metrics.items()
    return state, dict(zip(names, np.asarray(values)[0]))

  state, metrics = first_step()
  again, same = first_step(log_every=7, data_dir="elsewhere")    # of which only the first is said to matter
  assert len(traced) == 2 and same == metrics and {"loss", "finite", "learning_rate"} <= set(metrics)
  again, same = first_step()
  assert len(traced) == 2 and same == metrics
  jax.tree.map(np.testing.assert_array_equal, state, again)
  other = config.copy_and_resolve_references()
  other.learning_rate /= 2
  assert pmap_programs.cache_key(other, StandIn(codec)) != pmap_programs.cache_key(config, StandIn(codec))


def test_the_second_process_of_a_command_traces_nothing(checkpoint, tmp_path):
  """The second process has its own seed of hashes; the third one is a fork with the imports of the second."""
  Image.effect_noise((64, 64), 40).convert("RGB").save(tmp_path / "photo.png")
  folder = tmp_path / "cache" / "programs"
  environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
  environment |= dict(MLIC_JAX_CACHE=str(folder.parent), JAX_LOG_COMPILES="1", JAX_PLATFORMS="cpu",
                      GLIBC_TUNABLES="glibc.malloc.hugetlb=1")  # without which a command starts itself again

  def encode(*before):
    """For each code before a command: the file, and whether anything that is cached was compiled."""
    paths = [tmp_path / f"{i}.mlic" for i in range(len(before))]
    run = "import runpy; runpy.run_module('mlic_jax', run_name='__main__')"
    commands = [Program(each + run, ["encode", f"{tmp_path / 'photo.png'}", f"{path}", "--ckpt", f"{checkpoint}"])
                for each, path in zip(before, paths, strict=True)]
    # However fast a small codec compiles, it is in the cache of JAX.
    imports = ("import jax, flax, mlic_jax.coding.codec, mlic_jax.commands.encode, mlic_jax.coding.rate_control; "
               "from mlic_jax.runtime import compilation_cache; compilation_cache.MIN_COMPILE_SECONDS = 0")
    done = run_forks(imports, commands, ROOT, environment=environment)
    assert [each.status for each in done] == [0] * len(before), [each.stderr for each in done]
    said = [[line for line in each.stderr.splitlines() if "cached_" in line] for each in done]
    return [(path.read_bytes(), any("Compiling" in line for line in lines))
            for path, lines in zip(paths, said, strict=True)]

  (first, compiled), = encode("")
  cached = {each.name for each in folder.iterdir()}
  assert compiled and len(cached) >= 2 * 6
  # JAX cannot serialize executables from its own cache.
  assert encode("", f"import shutil; shutil.rmtree({str(folder)!r}); ") == [(first, False), (first, True)]
  taken = {each.name for each in folder.iterdir()}
  assert taken < cached


def test_the_collector_of_python_rests_while_a_program_is_traced_and_no_longer(folder):
  seen = []

  def traced(x, fails):
    seen.append(gc.isenabled())
    return x.no_such_attribute if fails else x / 2

  assert executable_cache.with_executable_cache(lambda x: traced(x, False), "works", "")(np.float32(2)) == 1
  with pytest.raises(AttributeError):
    executable_cache.with_executable_cache(lambda x: traced(x, True), "fails", "")(np.float32(2))
  assert seen == [False, False] and gc.isenabled()
