"""Tiles on several devices, in a process with three CPU devices."""
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import random_variables
from helpers.light_codec import LIGHT, LIGHT_HALOS, LIGHT_STAGES, light_model

from mlic_jax.coding import memory_estimate, tile_devices, tiled_coder
from mlic_jax.coding.checkpoint_io import load_model, save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.memory_estimate import MemoryLimitError

SCRIPT = """
import collections, json, pathlib, sys
import jax, numpy as np
from mlic_jax.coding import analysis_stages, jit_functions, tile_devices, tile_functions, tiled_coder
from mlic_jax.coding.codec import Codec

halos, stages = json.loads(sys.argv[2])
tiled_coder.halos = lambda *_: tiled_coder.Halos(*halos)
analysis_stages.measure = lambda *_: analysis_stages.Stages(*stages)
used, progress, devices = collections.defaultdict(set), [], tile_devices.devices
def watch(module, name):
  function = getattr(module, name)
  def run(*arguments):
    results = function(*arguments)
    used[name] |= {frozenset(device.id for device in each.devices()) for each in jax.tree.leaves(results)}
    return results
  setattr(module, name, run)
for name in "features_of_window", "analyze_window", "finish_tile", "synthesize_tiles":
  watch(tile_functions, name)
for name in "start", "nonanchors", "advance":
  watch(jit_functions, name)

def code(name):
  coder = Codec.load(folder / "light", allow_custom_modules=True).coder
  codec = Codec(coder, tile_progress=lambda *done: progress.append(done), tile_batch=2)
  codec, lines = codec.with_options(tile=64), []
  blob = codec.encode(image, 2)
  (folder / f"{name}.mlic").write_bytes(blob)
  damaged = bytearray(blob)
  damaged[len(blob) // 2] ^= 0x55
  np.save(folder / f"{name}.npy", [codec.decode(blob), codec.decode(bytes(damaged), partial=True, report=lines.append)])
  return lines

folder = pathlib.Path(sys.argv[1])
image = np.load(folder / "image.npy")
lines = code("three")
on_three = {name: sorted(map(sorted, each)) for name, each in used.items()}
with jax.default_device(jax.devices()[1]):
  assert devices(3) == [None]
tile_devices.devices = lambda count: jax.devices()[:1]
used.clear()
assert code("one") == lines
assert set.union(*used.values()) == {frozenset([0])}, used
print(json.dumps(dict(used=on_three, progress=progress, lines=lines)))
"""


def test_files_and_pixels_do_not_depend_on_the_number_of_devices(tmp_path, monkeypatch):
  """Each device computes batches of its own: no array is on two, whose program would have them await each other.

  Nine tiles are five batches, the last one of a single tile, in two turns, the last one of two devices."""
  row, column = np.mgrid[:190, :190][..., None]          # 3 x 3 tiles
  waves = np.sin(row / [9, 14, 23] + 1) + np.cos(column / [17, 8, 12])
  image = np.uint8(np.clip(128 + 50 * waves + np.random.default_rng(0).normal(0, 6, waves.shape), 0, 255))
  np.save(tmp_path / "image.npy", image)
  config = dataclasses.replace(LIGHT, contexts=(), hyper_widths=(4, 4), entropy_widths=(4,))
  save_model(tmp_path / "light", config, random_variables(config))
  env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=3",
             PYTHONPATH=os.pathsep.join(map(str, Path(__file__).parents[1:3])))
  measured = json.dumps([LIGHT_HALOS, LIGHT_STAGES])
  done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path, measured], env=env, stdout=subprocess.PIPE, check=True,
                        timeout=500)
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["used"] == {name: [[0], [1], [2]] for name in (
      "features_of_window", "analyze_window", "start", "nonanchors", "advance", "finish_tile", "synthesize_tiles")}
  assert found["progress"] == 6 * [[done, 9] for done in range(1, 10)]
  assert len(found["lines"]) == 1 and "of 9" in found["lines"][0]
  blob = (tmp_path / "three.mlic").read_bytes()
  assert (tmp_path / "one.mlic").read_bytes() == blob
  three, one = np.load(tmp_path / "three.npy"), np.load(tmp_path / "one.npy")
  np.testing.assert_array_equal(three, one)
  monkeypatch.setattr(tiled_coder, "halos", lambda *_: LIGHT_HALOS)
  decoded = Codec(load_model(tmp_path / "light", True)).decode(blob)   # here XLA computes with other threads
  assert decoded.shape == image.shape and np.abs(decoded.astype(int) - three[0]).max() <= 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_order_with_as_many_dispatched_ahead_as_there_are_devices(count):
  dispatched, seen = [], []
  for result in tile_devices.ahead((dispatched.append(i) or i for i in range(4)), count):
    assert len(dispatched) == min(result + count, 4)
    seen.append(result)
  assert seen == [0, 1, 2, 3]


def test_runs_take_turns_and_return_their_results_in_order():
  steps = []

  def run(name, count):
    for step in range(count):
      steps.append(f"{name}{step}")
      yield
    return name

  assert tile_devices.in_turns([run("a", 1), run("b", 3), run("c", 0)]) == ["a", "b", "c"]
  assert steps == ["a0", "b0", "b1", "b2"]


def test_devices_that_share_the_memory_of_the_host_hold_a_batch_each(monkeypatch):
  tiles = Codec(light_model(), tile_batch=2).tiles
  grid = tiles.grid(640, 640, 64)
  needed = memory_estimate.bytes_needed(tiles.coder.config, *(64 + 2 * 16 * 2,) * 2)
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: 5 * needed)
  tiles.check_memory(grid)
  monkeypatch.setattr(tile_devices, "devices", lambda count: [None] * min(count, 4))
  with pytest.raises(MemoryLimitError, match="8 tiles with their surroundings"):
    tiles.check_memory(grid)
