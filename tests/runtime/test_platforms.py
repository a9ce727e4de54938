"""Tests of JAX_PLATFORMS: every command reports an unavailable platform in one line."""
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers.forked_programs import Program, run_forks

from mlic_jax.data.image_io import save_image

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "encode": ["encode", "{photo}", "{out}", "--ckpt", "{ckpt}"],
    "decode": ["decode", "{mlic}", "{out}.png", "--ckpt", "{ckpt}"],
    "eval": ["eval", "--ckpt", "{ckpt}", "--data", "{folder}", "--out", "{out}"],
    "train": ["train", "--config", "nano", "--workdir", "{out}", "--config.data_dir={folder}"],
    "ablate": ["ablate", "--data", "{folder}", "--steps", "1", "--workdir", "{out}"],
    "describe": ["describe", "--config", "nano"],
    "estimate": ["estimate", "--config", "nano", "--topology", "v5e:2x4"],
    "round-weights": ["round-weights", "{ckpt}", "{out}"],
    "calibrate": ["calibrate", "{ckpt}", "--data", "{folder}", "--out", "{out}"],
    "Codec.load": ["{ckpt}"],
}
RUN = "import sys; from mlic_jax.__main__ import main; sys.exit(main())"
LOAD = """
import sys, mlic_jax
try: mlic_jax.Codec.load(sys.argv[1])
except ValueError as error: sys.exit(f"error: {error}")
"""
# JAX reads the variable when it is imported, but starts no backend before a command needs one.
SHARED = """
import flax, grain, jax, matplotlib, optax, orbax.checkpoint
import mlic_jax.coding.codec, mlic_jax.evaluation.session, mlic_jax.model.complexity, mlic_jax.training.loop
import mlic_jax.coding.calibration, mlic_jax.evaluation.ablation, mlic_jax.data.loader, rich.table
"""


@pytest.mark.parametrize("platform, commands", [("cuda", [*COMMANDS]), ("tpu", ["encode"]), ("nowhere", ["train"])])
def test_a_platform_that_is_not_there_is_one_line_with_those_that_are(platform, commands, tiny_checkpoint, tmp_path,
                                                                      photograph):
  if any(device.platform in (platform, "gpu") for device in jax.devices()):
    pytest.skip(f"{platform} is there")
  (tmp_path / "photos").mkdir()
  save_image(tmp_path / "photos" / "a.png", photograph)
  (tmp_path / "a.mlic").write_bytes((ROOT / "tests/fixtures/written_before/trained.mlic").read_bytes())
  names = dict(photo=tmp_path / "photos" / "a.png", folder=tmp_path / "photos", ckpt=tiny_checkpoint,
               out=tmp_path / "out", mlic=tmp_path / "a.mlic")
  programs = [Program(LOAD if name == "Codec.load" else RUN, [each.format(**names) for each in COMMANDS[name]])
              for name in commands]
  imports = SHARED if len(commands) > 1 else ""
  found = run_forks(imports, programs, ROOT, environment=os.environ | {"JAX_PLATFORMS": platform})
  for command, done in zip(commands, found, strict=True):
    assert done.status == (1 if command == "Codec.load" else 2), command
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: JAX_PLATFORMS={platform}: "), command
    assert done.stderr.endswith("; the platforms that are there: cpu\n"), command
    assert not done.stdout or command == "ablate"        # which names the run first
  assert not (tmp_path / "out").exists()


def test_a_second_choice_that_is_there_is_taken():
  code = "from mlic_jax.runtime.platforms import check_platforms; check_platforms()"
  assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"JAX_PLATFORMS": "cuda,cpu"}, cwd=ROOT,
                        timeout=300).returncode == 0
