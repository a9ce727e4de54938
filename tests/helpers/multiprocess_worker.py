"""Starts train.py in several processes, with a signal at a step, which a test cannot send on time from outside.

    python tests/helpers/multiprocess_worker.py

reads a line for each set of processes that run at one time: a JSON list with, for each process, its `arguments` of
train.py, `variables` of the environment, `signal`, SIGNAL@STEP or "", `model`, codec, or stand-in, which compiles in a
second, and `said`, the file of its stderr. When all have ended, it prints the JSON list of their exit statuses.

The processes are forked after the imports, which take most of the time of a start.
"""
import gc
import json
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from helpers.linear_stub import StandIn

from mlic_jax.commands import train  # noqa: F401 (imported for the processes)
from mlic_jax.training import config_schema, loop  # noqa: F401
from mlic_jax.training.run_log import RunLog

ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds for a process; a hang ends it with SIGALRM


def send_at(name: str, step: int) -> None:
  """Sends the signal to this process when it has begun `step`."""
  usual = RunLog.step

  def reached(self, done):
    usual(self, done)
    if done == step:
      os.kill(os.getpid(), getattr(signal, name))
  RunLog.step = reached


def start(process: dict) -> int:
  """Forks a process; returns its number."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of jax, whose threads have not started yet
    child = os.fork()
  if child:
    return child
  signal.alarm(LIMIT)
  for stream, path in enumerate((os.devnull, os.devnull, process["said"])):
    file = os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(file, stream)
    os.close(file)
  os.environ.update(process["variables"])
  if process["model"] == "stand-in":
    loop.build = StandIn
  if process["signal"]:
    name, _, step = process["signal"].partition("@")
    send_at(name, int(step))
  sys.argv = ["train.py", *process["arguments"]]
  runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
  raise AssertionError("train.py did not exit")


if __name__ == "__main__":
  gc.freeze()  # for the exits
  gc.set_threshold(50_000, 20, 50)  # as in conftest.py
  for line in sys.stdin:
    children = [start(process) for process in json.loads(line)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(statuses), flush=True)
