"""train.py as it is started, and a signal that comes to this process at a step: what a test cannot time from outside.

    python tests/helpers/multiprocess_worker.py SIGNAL@STEP ARGUMENTS-OF-TRAIN.PY      SIGNAL@STEP may be ""
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


if __name__ == "__main__":
  _, when, *arguments = sys.argv
  if when:
    name, _, step = when.partition("@")
    send_at(name, int(step))
  sys.argv = ["train.py", *arguments]
  runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
