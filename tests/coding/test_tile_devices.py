"""Tiles on several devices, in a process with four CPU devices."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from mlic_jax.coding.codec import Codec

SCRIPT = """
import sys
import jax, numpy as np
from mlic_jax.coding import jit_functions, tile_functions
from mlic_jax.coding.codec import Codec

used = {}
def watched(module, name, index):
  function = getattr(module, name)
  def run(*arguments):
    used.setdefault(name, set()).add(len(getattr(arguments[index], "devices", set)()))
    return function(*arguments)
  setattr(module, name, run)
for module, name in ((tile_functions, "features_of_window"), (tile_functions, "analyze_window"),
                     (jit_functions, "start"), (tile_functions, "synthesize_tiles")):
  watched(module, name, 2)
assert len(jax.devices()) == 4
folder = sys.argv[1]
image = np.load(folder + "/image.npy")
codec = Codec(Codec.load(sys.argv[2]).coder, tile_batch=8).with_options(tile=64)
open(folder + "/file.mlic", "wb").write(codec.encode(image, 2))
assert set(map(frozenset, used.values())) == {frozenset([4])}, used
np.save(folder + "/decoded.npy", codec.decode(open(folder + "/file.mlic", "rb").read()))
assert used["synthesize_tiles"] == {4}, used
odd = Codec(codec.coder, options=codec.options, tile_batch=3)     # a single device for each batch of three
np.save(folder + "/odd.npy", odd.decode(open(folder + "/file.mlic", "rb").read()))
"""


def test_each_device_computes_its_share_of_a_batch_and_files_decode_on_one(tiny_checkpoint, tmp_path):
  row, column = np.mgrid[:190, :250][..., None]
  waves = np.sin(row / [9, 14, 23] + 1) + np.cos(column / [17, 8, 12])
  image = np.uint8(np.clip(128 + 50 * waves + np.random.default_rng(0).normal(0, 6, waves.shape), 0, 255))
  np.save(tmp_path / "image.npy", image)
  env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4",
             PYTHONPATH=str(Path(__file__).parents[2]))
  subprocess.run([sys.executable, "-c", SCRIPT, tmp_path, tiny_checkpoint], env=env, check=True, timeout=300)
  decoded = Codec.load(tiny_checkpoint).decode((tmp_path / "file.mlic").read_bytes()).astype(int)
  assert decoded.shape == image.shape
  for name in "decoded", "odd":
    assert np.abs(decoded - np.load(tmp_path / f"{name}.npy")).max() <= 1
