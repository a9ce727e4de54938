"""Tests of what makes commands start quickly."""
import gc
import os
import subprocess
import sys

import numpy as np
from conftest import random_variables
from helpers.distribution_cases import SMALL
from PIL import Image

from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.commands.codec_io import load_codecs


def test_the_garbage_collector_is_off_while_a_codec_loads_and_then_on(monkeypatch):
  seen = []
  monkeypatch.setattr(Codec, "load", lambda *_, **__: seen.append(gc.isenabled()))
  load_codecs(["a", "b"])
  assert seen == [False, False] and gc.isenabled()


def test_coding_with_a_filled_cache_imports_no_slow_libraries(tmp_path):
  """Their imports, and reading by them, take as long as everything else."""
  save_model(tmp_path / "small", SMALL, random_variables(SMALL))
  Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "x.png")
  code = """
import sys
from mlic_jax.runtime import startup
startup.begin()
from mlic_jax.__main__ import main
folder, checkpoint = sys.argv[1:]
assert main(["encode", f"{folder}/x.png", f"{folder}/x.mlic", "--ckpt", checkpoint]) == 0
assert main(["decode", f"{folder}/x.mlic", f"{folder}/y.png", "--ckpt", checkpoint]) == 0
from mlic_jax.config import CodecConfig
from mlic_jax.model.distributions import make_distribution
make_distribution(CodecConfig(distribution="generalized_gaussian"))     # that of nano
print(*sorted({"numba", "orbax.checkpoint", "tensorstore", "scipy.special", "PIL.PdfImagePlugin"} & set(sys.modules)))
"""
  run = lambda: subprocess.run([sys.executable, "-c", code, str(tmp_path), str(tmp_path / "small")], check=True,
                               capture_output=True, text=True, timeout=300,
                               env=os.environ | {"MLIC_JAX_CACHE": str(tmp_path / "cache")}).stdout.splitlines()[-1]
  assert "numba orbax.checkpoint" in run()
  assert run() == ""
