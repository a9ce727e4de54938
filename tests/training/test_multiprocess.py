"""Tests of training in two processes over loopback, which are started as a user starts them.

The compilation cache is on, and empty for the first start only, so that every later one runs what was compiled before.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.linear_stub import StandIn
from helpers.small_training import rows
from PIL import Image

from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import build
from mlic_jax.training.checkpoints import Checkpoints
from mlic_jax.training.config_schema import load_config
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import state_shapes

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "helpers" / "multiprocess_worker.py"
LIMIT = 300  # seconds for a start; a hang is a failure
MODEL = dict(transforms="unshuffled", N=8, M=8, num_slices=1, widths=(8, 8), hyper_widths=(8, 8), contexts=(),
             entropy_widths=(8,), lrp_widths=(), num_rates=2)
SETTINGS = dict({f"model.{name}": value for name, value in MODEL.items()}, lmbdas=(0.01, 0.02), optimizer="adam",
                num_steps=24, warmup_steps=2, checkpoint_every=5, eval_every=9, log_every=2, crop_size=64, batch_size=2,
                holdout_every=4, eval_crop_size=64, eval_images=0, eval_batch_size=2, eval_pictures=0, peer_timeout=10)


def arguments(workdir, photographs, **changes):
  settings = dict(SETTINGS, data_dir=photographs, **changes)
  return ["--config=configs/nano.py", f"--workdir={workdir}",
          *[f"--config.{name}={value}" for name, value in settings.items()]]


class Pod:
  """Starts two processes that train `model`, "stand-in" or "codec", with the compilation cache `cache`."""

  def __init__(self, folder: Path, model: str):
    self.model = model
    self.folder, self.cache, self.photographs = folder, folder / "cache", folder / "photographs"
    rng = np.random.default_rng(0)
    self.photographs.mkdir()
    for i in range(12):
      pixels = rng.integers(0, 256, (9, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)
      Image.fromarray(pixels).save(self.photographs / f"f{i:02}.png")

  def start(self, commands: list[list[str]], signals=("", ""), by_slurm=False) -> list[subprocess.Popen]:
    """A process for each list of arguments; SIGNAL@STEP of each. `by_slurm`: SLURM says who is who, and jax asks it."""
    with socket.create_server(("localhost", 0)) as server:
      port = server.getsockname()[1]
    env = dict(os.environ, JAX_PLATFORMS="cpu", MLIC_JAX_CACHE=str(self.cache),
               GLIBC_TUNABLES="glibc.malloc.hugetlb=0", PYTHONWARNINGS="ignore")
    if len(commands) > 1:
      env.update(JAX_COORDINATOR_ADDRESS=f"localhost:{port}")
      commands = [[*command, "--config.distributed=True"] for command in commands]
    started = []
    for i, command in enumerate(commands):
      who = dict(JAX_NUM_PROCESSES=str(len(commands)), JAX_PROCESS_ID=str(i))
      if by_slurm:
        who = dict(SLURM_JOB_ID="1", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS=str(len(commands)),
                   SLURM_PROCID=str(i), SLURM_LOCALID=str(i), SLURM_STEP_NUM_NODES="1", SLURM_JOB_NUM_NODES="1")
      command = [sys.executable, str(WORKER), self.model, signals[i], *command]
      started.append(subprocess.Popen(command, text=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      env=env | who))
    return started

  def run(self, workdir, signals=("", "")) -> tuple[list[int], list[str]]:
    """Returns (exit statuses, stderr of each) of two processes with one workdir."""
    return end(self.start([arguments(workdir, self.photographs)] * 2, signals))


def end(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
  deadline, said = time.monotonic() + LIMIT, []
  try:
    for process in processes:
      said.append(process.communicate(timeout=max(1, deadline - time.monotonic()))[1])
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], said


def state_of(pod, workdir):
  config = load_config("configs/nano.py", [each for each in arguments(workdir, "") if each.startswith("--config.")])
  model = {"stand-in": StandIn, "codec": build}[pod.model](CodecConfig(**MODEL))
  like = state_shapes(config, model, make_optimizer(config))
  restored = Checkpoints(workdir, 2).restore(like)
  return jax.device_get(restored.state), restored.evaluated


@pytest.fixture(scope="module", name="pod", params=["stand-in", pytest.param("codec", marks=pytest.mark.slow)])
def two_processes(tmp_path_factory, request):
  return Pod(tmp_path_factory.mktemp("pod"), request.param)


def test_a_pod_that_is_killed_and_stopped_again_and_again_ends_in_the_bits_of_one_left_alone(pod):
  cut = pod.folder / "cut"
  status, said = pod.run(cut, ("", "SIGKILL@8"))  # the first start: it compiles
  assert status == [1, -signal.SIGKILL]
  assert said[0].splitlines()[-1].startswith("train.py: process 1 ")

  status, said = pod.run(cut, ("", "SIGTERM@11"))  # one of them alone, and the lock of the killed run is no obstacle
  assert status == [143, 143]
  stopped = said[0].splitlines()[-1]
  assert stopped == said[1].splitlines()[-1] and stopped.startswith("train.py: stopped by SIGTERM at step 1")
  step = int(stopped.split(" at step ")[1].split(";")[0])
  assert 11 <= step <= 14 and state_of(pod, cut)[0].step == step

  status, said = pod.run(cut, ("SIGTERM@24", "SIGTERM@23"))  # both, a moment apart, in the last steps
  assert status == [143, 143] and "at step 24" in said[0]
  assert [row["step"] for row in rows(cut / "eval.csv")] == ["9", "9", "18", "18"]

  status, said = pod.run(cut)
  assert status == [0, 0], said
  assert [row["step"] for row in rows(cut / "eval.csv")] == ["9", "9", "18", "18", "24", "24"]

  whole = pod.folder / "whole"
  status, said = pod.run(whole)
  assert status == [0, 0], said
  assert (cut / "eval.csv").read_text() == (whole / "eval.csv").read_text()
  jax.tree.map(np.testing.assert_array_equal, state_of(pod, cut)[0], state_of(pod, whole)[0])
  models = [load_model(workdir / "model") for workdir in (cut, whole)]
  assert models[0].training == models[1].training
  jax.tree.map(np.testing.assert_array_equal, *(model.variables for model in models))


def test_a_pod_has_the_loss_curve_the_evaluation_and_the_model_of_one_process(pod):
  alone, whole = pod.folder / "alone", pod.folder / "whole"
  status, said = end(pod.start([arguments(alone, pod.photographs)]))
  assert status == [0], said
  for name in ("metrics.csv", "eval.csv"):
    for one, two in zip(rows(alone / name), rows(whole / name), strict=True):
      for column in ("step", "loss", "bpp", "psnr"):
        assert float(one[column]) == pytest.approx(float(two[column]), rel=1e-3), (name, column)
  recorded = json.loads((whole / "config.json").read_text())["environment"]
  assert recorded["processes"] == 2 and recorded["jax"] == jax.__version__
  one, two = (load_model(workdir / "model") for workdir in (alone, whole))
  assert one.training["step"] == two.training["step"]
  apart = jax.tree.map(lambda a, b: np.abs(a - b).ravel(), one.variables, two.variables)
  apart = np.concatenate(jax.tree.leaves(apart))
  # Adam divides by the size of a gradient: where that is all rounding, so is the step, of up to the learning rate.
  assert np.quantile(apart, 0.99) < 1e-4 and apart.max() < 24 * 5e-4


def test_processes_that_cannot_start_together_say_why_and_end(pod):
  """A pod with a worker that sees another workdir, and one with a host that cannot read a held-out image."""
  other = shutil.copytree(pod.photographs, pod.folder / "other")
  (other / "f04.png").write_bytes((other / "f04.png").read_bytes()[:-40])  # the header is whole
  apart = pod.start([arguments(pod.folder / name, pod.photographs) for name in ("here", "there")], by_slurm=True)
  damaged = pod.start([arguments(pod.folder / "third", photographs) for photographs in (pod.photographs, other)])
  reasons = ("there is another folder on this process than on process 0", "the set of held-out images is 3 images ")
  for processes, reason in zip((apart, damaged), reasons):
    status, said = end(processes)
    assert status == [2, 2], said
    for lines in said:
      assert lines.splitlines()[-1].startswith("train.py: ") and reason in lines.splitlines()[-1]
  assert not (pod.folder / "there").exists()


@pytest.mark.slow
def test_when_the_first_process_is_killed_the_other_ends_too(pod):
  """JAX reports it, whose service runs in process 0, or our heartbeat, whichever is first."""
  status, said = pod.run(pod.folder / "headless", ("SIGKILL@8", ""))
  assert status[0] == -signal.SIGKILL and status[1] not in (0, 2)
  assert "process 0 " in said[1] or "another task died" in said[1]
