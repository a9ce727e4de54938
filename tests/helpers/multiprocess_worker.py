"""train.py as it is started, with a signal at a step, which a test cannot send on time from outside.

    python tests/helpers/multiprocess_worker.py MODEL SIGNAL@STEP ARGUMENTS-OF-TRAIN.PY

MODEL is codec, or stand-in, which compiles in a second. SIGNAL@STEP may be "".
"""
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def send_at(name: str, step: int) -> None:
  """Sends the signal to this process when it has begun `step`."""
  from mlic_jax.training.run_log import RunLog
  usual = RunLog.step

  def reached(self, done):
    usual(self, done)
    if done == step:
      os.kill(os.getpid(), getattr(signal, name))
  RunLog.step = reached


def train_the_stand_in() -> None:
  sys.path.insert(1, str(ROOT / "tests"))
  from helpers.linear_stub import StandIn

  from mlic_jax.training import loop
  loop.build = StandIn


if __name__ == "__main__":
  _, model, when, *arguments = sys.argv
  if model == "stand-in":
    train_the_stand_in()
  if when:
    name, _, step = when.partition("@")
    send_at(name, int(step))
  sys.argv = ["train.py", *arguments]
  runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
