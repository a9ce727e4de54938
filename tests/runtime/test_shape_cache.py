"""Tests of the cache of compiled image sizes: recent sizes stay, others are evicted."""
import collections
import dataclasses
import gc
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import random_variables
from helpers.fake_codec import FakeCodec
from helpers.image_sets import photographs
from helpers.light_codec import LIGHT
from PIL import Image

from mlic_jax.coding import jit_functions
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.evaluation import image_metrics, runner
from mlic_jax.runtime import shape_cache

ROOT = Path(__file__).parents[2]


def executables(*functions):
  """Returns the number of compiled versions of these functions in this process."""
  names = {f"jit_{function.__name__}" for function in functions}
  held = (each.hlo_modules()[0].name for each in jax.devices()[0].client.live_executables())
  return collections.Counter(name for name in held if name in names)


def doubled():
  """A new function for each test, and the arguments that it was traced for."""
  traced = []

  @shape_cache.shape_cached(size=1, module=0)
  def double(module, x):
    traced.append((module, x.shape))
    return 2 * x

  return double, traced


@pytest.fixture(scope="module")
def light(tmp_path_factory):
  """A codec whose programs compile faster than those of the tiny checkpoint."""
  config = dataclasses.replace(LIGHT, contexts=(), hyper_widths=(4, 4), entropy_widths=(4,))
  path = tmp_path_factory.mktemp("checkpoints") / "light"
  save_model(path, config, random_variables(config))
  return Codec.load(path, allow_custom_modules=True)


def test_the_sizes_used_last_are_cached_and_no_others(monkeypatch):
  monkeypatch.setattr(shape_cache, "MAX_SIZES", 2)
  double, traced = doubled()
  call = lambda side: np.testing.assert_array_equal(double("a", np.ones(side)), np.full(side, 2.0))
  for side in (3, 4, 3, 5, 3):                           # 5 takes the place of 4, which was used before 3
    call(side)
  assert traced == [("a", (3,)), ("a", (4,)), ("a", (5,))]
  assert double.is_cached((3,), "a") and double.is_cached((5,), "a") and not double.is_cached((4,), "a")
  call(4)                                                # is compiled again, in the place of 5
  assert traced[3:] == [("a", (4,))] and double.is_cached((3,), "a") and not double.is_cached((5,), "a")
  for side in range(6, 12):
    call(side)
  assert executables(double) == {"jit_double": 2}


def test_another_module_has_sizes_of_its_own(monkeypatch):
  double, traced = doubled()
  for module in ("a", "b", "a", "b"):
    double(module, np.ones(3))
  assert traced == [("a", (3,)), ("b", (3,))] and not double.is_cached((3,), "c")


def test_a_function_in_use_by_another_thread_is_not_freed(monkeypatch):
  monkeypatch.setattr(shape_cache, "MAX_SIZES", 1)
  double, _ = doubled()
  wrong = []

  def work(side):
    for _ in range(20):
      if not np.array_equal(double("a", np.ones(side)), np.full(side, 2.0)):
        wrong.append(side)

  threads = [threading.Thread(target=work, args=(side,)) for side in (3, 4)]
  [each.start() for each in threads]
  [each.join() for each in threads]
  assert not wrong


def test_a_codec_caches_compiled_functions_of_a_few_sizes(light, photograph, monkeypatch):
  monkeypatch.setattr(shape_cache, "MAX_SIZES", 1)
  codec, held = light, []
  functions = [each for each in vars(jit_functions).values() if isinstance(each, shape_cache.ShapeCache)]
  for function in functions:  # programs of other tests
    function._cache.clear()
  gc.collect()
  for width in (64, 128):
    blob, picture, bits = codec.encode_with_bits(photograph[:64, :width], 2)
    np.testing.assert_array_equal(codec.decode(blob), picture)
    assert bits() > 0 and codec.has_compiled(1, width) and not codec.has_compiled(1, 192 - width)
    held.append(executables(*functions))
  assert held[0] == held[1] and len(held[0]) > 8


def test_a_second_checkpoint_of_an_architecture_warms_nothing_again():
  first = FakeCodec()
  images = photographs(np.zeros((64, 64, 3), np.uint8))
  runner.evaluate_codec(first, (2,), images)
  second = FakeCodec()
  second.has_compiled = first.has_compiled
  runner.evaluate_codec(second, (2,), images)
  assert (len(first.encoded), len(second.encoded)) == (2, 1)


def test_an_image_is_evaluated_with_one_analysis_and_two_scans(light, photograph, monkeypatch):
  codec, calls = light, []
  for name in ("analyze", "start", "finish"):
    function = getattr(jit_functions, name)
    counted = lambda *args, name=name, function=function: (calls.append(name), function(*args))[1]
    monkeypatch.setattr(jit_functions, name, counted)
  coded = image_metrics.code(codec, "photo", photograph, 2)
  assert {name: calls.count(name) for name in calls} == dict(analyze=1, start=2, finish=2)
  assert coded.bits == codec.estimate(photograph, 2)[0]


MEASURED = """
import re, resource, sys, threading, time
from pathlib import Path
from mlic_jax.runtime import startup
startup.begin()                          # as in the programs
from mlic_jax.__main__ import main

most = [0]
def watch():
  while True:
    most[0] = max(most[0], len(Path("/proc/self/maps").read_text().splitlines()))
    time.sleep(0.5)
threading.Thread(target=watch, daemon=True).start()
status = main(sys.argv[1:])
print("status", status, "mappings", most[0], "bytes", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory mappings are those of Linux")
@pytest.mark.parametrize("program", ["encode", "eval"])
def test_images_of_two_hundred_sizes_fit_into_memory(tiny_checkpoint, tmp_path, program):
  """Of 95 MB and 600 mappings each; Linux ends a process with 65,530."""
  folder = tmp_path / "pictures"
  folder.mkdir()
  for i in range(200):
    side = (1 + i // 20) * 64, (1 + i % 20) * 64
    Image.effect_noise(side[::-1], 40).convert("RGB").save(folder / f"{i:03d}.png", compress_level=1)
  arguments = {"encode": [folder, "--ckpt", tiny_checkpoint, "--out-dir", tmp_path / "out"],
               "eval": ["--data", folder, "--ckpt", tiny_checkpoint, "--out", tmp_path / "out", "--qualities", "2",
                        "--baselines", "none", "--report-images", "0"]}[program]
  done = subprocess.run([sys.executable, "-c", MEASURED, program, *map(str, arguments)], cwd=ROOT, text=True,
                        capture_output=True)
  assert done.returncode == 0, done.stderr
  status, mappings, memory = map(int, re.findall(r"status (\d+) mappings (\d+) bytes (\d+)", done.stdout)[0])
  assert status == 0 and mappings < 20_000 and memory < 3e9, (status, mappings, memory)
