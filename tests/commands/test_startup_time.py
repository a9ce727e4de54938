"""Tests of what makes commands start quickly."""
import gc
import os
import subprocess
import sys

import numpy as np
from PIL import Image

from mlic_jax.coding.codec import Codec
from mlic_jax.commands.codec_io import load_codecs


def test_the_garbage_collector_is_off_while_a_codec_loads_and_then_on(monkeypatch):
  seen = []
  monkeypatch.setattr(Codec, "load", lambda *_, **__: seen.append(gc.isenabled()))
  load_codecs(["a", "b"])
  assert seen == [False, False] and gc.isenabled()


def test_encoding_with_a_filled_cache_imports_neither_orbax_nor_numba(tiny_checkpoint, tmp_path):
  """Their imports, and reading by them, take as long as everything else."""
  Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "x.png")
  code = ("import sys; from mlic_jax.runtime import startup; startup.begin(); from mlic_jax.__main__ import main\n"
          f"assert main(['encode', r'{tmp_path}/x.png', r'{tmp_path}/x.mlic', '--ckpt', r'{tiny_checkpoint}']) == 0\n"
          "print(*sorted({'numba', 'orbax.checkpoint', 'tensorstore'} & set(sys.modules)))")
  run = lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=300,
                               env=os.environ | {"MLIC_JAX_CACHE": str(tmp_path / "cache")}).stdout.splitlines()[-1]
  assert [run(), run()] == ["numba orbax.checkpoint tensorstore", ""]
