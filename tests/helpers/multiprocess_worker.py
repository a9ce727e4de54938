"""train.py as it is started, with a signal at a step, which a test cannot send on time from outside.

    python tests/helpers/multiprocess_worker.py MODEL SIGNAL@STEP ARGUMENTS-OF-TRAIN.PY [then SIGNAL@STEP ARGUMENTS ...]

MODEL is codec, or stand-in, which compiles in a second. SIGNAL@STEP may be "". The runs after the first one begin in
the same process, with the programs that it has compiled. The exit status of each run but the last is a line of stdout
and stderr.
"""
import itertools
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
THEN = "then"
STATUS = "exit status "


def send_at(name: str, step: int) -> None:
  """Sends the signal to this process when it has begun `step`."""
  from mlic_jax.training.run_log import RunLog
  usual = RunLog.step

  def reached(self, done):
    usual(self, done)
    if done == step:
      RunLog.step = usual
      os.kill(os.getpid(), getattr(signal, name))
  RunLog.step = reached


def train_the_stand_in() -> None:
  from helpers.linear_stub import StandIn

  from mlic_jax.training import loop
  loop.build = StandIn


def keep_programs() -> None:
  """Lets the runs of this process share programs."""
  from helpers import shared_programs

  from mlic_jax.training import pmap_programs
  from mlic_jax.training import step as step_module
  for module in step_module, pmap_programs:
    module.with_executable_cache = shared_programs.with_programs_of_this_process


def train(when: str, *arguments: str) -> None:
  if when:
    name, _, step = when.partition("@")
    send_at(name, int(step))
  sys.argv = ["train.py", *arguments]
  runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


if __name__ == "__main__":
  _, model, *words = sys.argv
  from mlic_jax.training import preflight
  preflight.LOCK_WAIT = 1.0   # both processes are on one machine, where a file is visible at once
  *runs, last = [list(run) for is_then, run in itertools.groupby(words, lambda word: word == THEN) if not is_then]
  sys.path.insert(1, str(ROOT / "tests"))
  if model == "stand-in":
    train_the_stand_in()
  if runs:
    keep_programs()
  for run in runs:
    try:
      train(*run)
    except SystemExit as end:
      for stream in sys.stdout, sys.stderr:
        print(f"{STATUS}{end.code}", file=stream, flush=True)
  train(*last)
