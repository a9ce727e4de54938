"""Tests that worker processes of an evaluation end with the process that started them."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PARENT = """
import os, sys, time
from mlic_jax.evaluation.workers import WorkerPool
if __name__ == "__main__":
  workers = WorkerPool(2)
  print(workers.submit(os.getpid).result(), flush=True)
  time.sleep(60)
"""


def is_running(process: int) -> bool:
  try:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_worker_ends_when_the_process_that_started_it_is_killed(tmp_path):
  (tmp_path / "parent.py").write_text(PARENT)
  parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": str(ROOT)})
  worker = int(parent.stdout.readline())
  assert is_running(worker)
  parent.send_signal(signal.SIGKILL)
  parent.wait(10)
  end = time.monotonic() + 20
  while is_running(worker) and time.monotonic() < end:
    time.sleep(0.1)
  assert not is_running(worker)
