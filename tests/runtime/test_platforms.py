"""Tests of JAX_PLATFORMS: every command reports an unavailable platform in one line."""
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

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
    "Codec.load": None,
}
LOAD = """
import sys, mlic_jax
try: mlic_jax.Codec.load(sys.argv[1])
except ValueError as error: sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize("command, platform", [*((name, "cuda") for name in COMMANDS), ("encode", "tpu"),
                                               ("train", "nowhere")])
def test_a_platform_that_is_not_there_is_one_line_with_those_that_are(command, platform, tiny_checkpoint, tmp_path,
                                                                      photograph):
  if any(device.platform in (platform, "gpu") for device in jax.devices()):
    pytest.skip(f"{platform} is there")
  (tmp_path / "photos").mkdir()
  save_image(tmp_path / "photos" / "a.png", photograph)
  (tmp_path / "a.mlic").write_bytes((ROOT / "tests/fixtures/written_before/trained.mlic").read_bytes())
  names = dict(photo=tmp_path / "photos" / "a.png", folder=tmp_path / "photos", ckpt=tiny_checkpoint,
               out=tmp_path / "out", mlic=tmp_path / "a.mlic")
  arguments = ["-c", LOAD, str(tiny_checkpoint)]
  if COMMANDS[command]:
    arguments = ["-m", "mlic_jax", *(each.format(**names) for each in COMMANDS[command])]
  done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300,
                        env=os.environ | {"JAX_PLATFORMS": platform})
  assert done.returncode == (2 if COMMANDS[command] else 1)
  assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: JAX_PLATFORMS={platform}: ")
  assert done.stderr.endswith("; the platforms that are there: cpu\n")
  assert not (tmp_path / "out").exists()
  assert not done.stdout or command == "ablate"          # which names the run first


def test_a_second_choice_that_is_there_is_taken():
  code = "from mlic_jax.runtime.platforms import check_platforms; check_platforms()"
  assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"JAX_PLATFORMS": "cuda,cpu"}, cwd=ROOT,
                        timeout=300).returncode == 0
