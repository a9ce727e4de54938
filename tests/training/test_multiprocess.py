"""Tests of training in two processes over loopback, which are started as a user starts them.

The compilation cache is on, and empty for the first start only, so that every later one runs what was compiled before.
A process may begin further runs after its first one, which spares the imports and the tracing of a start.
"""
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers.linear_stub import StandIn
from helpers.multiprocess_worker import STATUS, THEN
from helpers.small_training import rows
from PIL import Image

from mlic_jax.__main__ import main_of_one_command
from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import build
from mlic_jax.training import loop
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

  def start(self, *runs: list[list[str]], signals=(), by_slurm=False) -> list[subprocess.Popen]:
    """Starts two processes, which make `runs`, each with a list of arguments for each process, one after the other.

    `signals` has SIGNAL@STEP, or "", of both processes for each run. `by_slurm`: SLURM says who is who, and jax asks
    it."""
    with socket.create_server(("localhost", 0)) as server:
      port = server.getsockname()[1]
    env = dict(os.environ, JAX_PLATFORMS="cpu", MLIC_JAX_CACHE=str(self.cache), PYTHONWARNINGS="ignore",
               GLIBC_TUNABLES="glibc.malloc.hugetlb=0", JAX_COORDINATOR_ADDRESS=f"localhost:{port}")
    started = []
    for i in range(2):
      who = dict(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i))
      if by_slurm:
        who = dict(SLURM_JOB_ID="1", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2",
                   SLURM_PROCID=str(i), SLURM_LOCALID=str(i), SLURM_STEP_NUM_NODES="1", SLURM_JOB_NUM_NODES="1")
      command = [sys.executable, str(WORKER), self.model]
      for number, (run, sent) in enumerate(zip(runs, signals or [("", "")] * len(runs), strict=True)):
        command += [*([THEN] if number else []), sent[i], *run[i], "--config.distributed=True"]
      started.append(subprocess.Popen(command, text=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      env=env | who))
    return started

  def run(self, *runs: tuple[Path, tuple[str, str]]) -> list["Run"]:
    """Makes runs of (workdir, signals) in one start of the pod."""
    return end(self.start(*[[arguments(workdir, self.photographs)] * 2 for workdir, _ in runs],
                          signals=[signals for _, signals in runs]))


class Run(NamedTuple):
  status: list[int]       # exit status of each process
  said: list[str]         # stderr of each process
  printed: str            # stdout of process 0


def end(processes: list[subprocess.Popen]) -> list[Run]:
  """Waits for the processes, and returns what each of their runs left."""
  deadline, streams = time.monotonic() + LIMIT, []
  try:
    for process in processes:
      streams.append(process.communicate(timeout=max(1, deadline - time.monotonic())))
  finally:
    for process in processes:
      process.kill()
  of_runs = lambda text: re.split(rf"^{STATUS}\d+\n", text, flags=re.MULTILINE)
  status = [[*map(int, re.findall(rf"^{STATUS}(\d+)$", err, flags=re.MULTILINE)), process.returncode]
            for process, (_, err) in zip(processes, streams, strict=True)]
  said = [of_runs(err) for _, err in streams]
  return [Run(list(each[:2]), list(each[2:4]), each[4])
          for each in zip(*status, *said, of_runs(streams[0][0]), strict=True)]


@functools.cache
def shapes(model):
  config = load_config("configs/nano.py", [each for each in arguments("", "") if each.startswith("--config.")])
  make = {"stand-in": StandIn, "codec": build}[model]
  return state_shapes(config, make(CodecConfig(**MODEL)), make_optimizer(config))


def state_of(pod, workdir):
  with Checkpoints(workdir, 2) as checkpoints:
    return jax.device_get(checkpoints.restore(shapes(pod.model)).state)


@pytest.fixture(scope="module", name="pod", params=["stand-in", pytest.param("codec", marks=pytest.mark.slow)])
def two_processes(tmp_path_factory, request):
  return Pod(tmp_path_factory.mktemp("pod"), request.param)


def test_a_pod_that_is_killed_and_stopped_again_and_again_ends_in_the_bits_of_one_left_alone(pod):
  cut, whole = pod.folder / "cut", pod.folder / "whole"
  (killed,) = pod.run((cut, ("", "SIGKILL@8")))  # the first start: it compiles
  assert killed.status == [1, -signal.SIGKILL]
  assert killed.said[0].splitlines()[-1].startswith("train.py: process 1 ")

  stopped, in_the_last_steps, continued, left_alone, late = pod.run(
      (cut, ("", "SIGTERM@11")),             # one of them alone, and the lock of the killed run is no obstacle
      (cut, ("SIGTERM@24", "SIGTERM@23")),   # both, a moment apart
      (cut, ("", "")), (whole, ("", "")),
      (pod.folder / "late", ("SIGTERM@1", "")))  # with the exit statuses of the processes themselves
  assert stopped.status == in_the_last_steps.status == late.status == [143, 143]
  assert continued.status == left_alone.status == [0, 0], (continued.said, left_alone.said)
  line = stopped.said[0].splitlines()[-1]
  assert line == stopped.said[1].splitlines()[-1] and line.startswith("train.py: stopped by SIGTERM at step 1")
  step = int(line.split(" at step ")[1].split(";")[0])
  assert 11 <= step <= 14 and f"continuing at step {step}, 24 steps" in in_the_last_steps.printed
  assert "at step 24" in in_the_last_steps.said[0] and "continuing at step 24, 24 steps" in continued.printed
  evaluation = "evaluation at step 24"
  assert evaluation not in in_the_last_steps.printed and evaluation in continued.printed

  assert [row["step"] for row in rows(cut / "eval.csv")] == ["9", "9", "18", "18", "24", "24"]
  assert (cut / "eval.csv").read_text() == (whole / "eval.csv").read_text()
  jax.tree.map(np.testing.assert_array_equal, state_of(pod, cut), state_of(pod, whole))
  models = [load_model(workdir / "model") for workdir in (cut, whole)]
  assert models[0].training == models[1].training
  jax.tree.map(np.testing.assert_array_equal, *(model.variables for model in models))


def test_a_pod_has_the_loss_curve_the_evaluation_and_the_model_of_one_process(pod, monkeypatch):
  alone, whole = pod.folder / "alone", pod.folder / "whole"
  if pod.model == "stand-in":
    monkeypatch.setattr(loop, "build", StandIn)
  assert main_of_one_command("train", "train.py", arguments(alone, pod.photographs)) == 0
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
  ended = end(pod.start([arguments(pod.folder / "third", photographs) for photographs in (pod.photographs, other)],
                        [arguments(pod.folder / name, pod.photographs) for name in ("here", "there")], by_slurm=True))
  reasons = ("the set of held-out images is 3 images ", "there is another folder on this process than on process 0")
  for run, reason in zip(ended, reasons, strict=True):
    assert run.status == [2, 2], run.said
    for lines in run.said:
      assert lines.splitlines()[-1].startswith("train.py: ") and reason in lines.splitlines()[-1]
  assert not (pod.folder / "there").exists()


@pytest.mark.slow
def test_when_the_first_process_is_killed_the_other_ends_too(pod):
  """JAX reports it, whose service runs in process 0, or our heartbeat, whichever is first."""
  (run,) = pod.run((pod.folder / "headless", ("SIGKILL@8", "")))
  assert run.status[0] == -signal.SIGKILL and run.status[1] not in (0, 2)
  assert "process 0 " in run.said[1] or "another task died" in run.said[1]
