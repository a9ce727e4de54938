"""Tests of huge pages: a program restarts once, with its arguments, and keeps the memory that it frees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
print("started", *sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
from mlic_jax.runtime.huge_pages import use_huge_pages
use_huge_pages()
print("goes on", os.getpid())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the switch is one of glibc")
@pytest.mark.parametrize("before, starts", [
    (None, ["started a b c None", "started a b c glibc.malloc.hugetlb=1"]),
    ("glibc.malloc.check=0", ["started a b c glibc.malloc.check=0",
                              "started a b c glibc.malloc.check=0:glibc.malloc.hugetlb=1"]),
    ("glibc.malloc.hugetlb=0", ["started a b c glibc.malloc.hugetlb=0"])])
def test_a_program_is_started_again_once_as_the_same_process(tmp_path, before, starts):
  script = tmp_path / "program.py"
  script.write_text(PROGRAM.format(root=str(Path(__file__).parents[2])))
  env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
  process = subprocess.Popen([sys.executable, "-u", script, "a", "b c"], text=True, stdout=subprocess.PIPE,
                             env=env | ({"GLIBC_TUNABLES": before} if before else {}))
  out, _ = process.communicate(timeout=60)
  assert out.splitlines() == [*starts, f"goes on {process.pid}"] and process.returncode == 0


PAGE_FAULTS = """
import os, resource, sys, threading
sys.path.insert(0, {root!r})
import numpy as np
from mlic_jax.runtime.huge_pages import keep_freed_memory
if {keep}:
  keep_freed_memory()

def allocate_and_free():
  for i in range(6):
    if i == 1:
      before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(3 * 2**20, np.uint8) for _ in range(10)]
    del arrays
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=allocate_and_free)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is that of glibc")
def test_memory_that_is_kept_needs_no_new_pages():
  def num_page_faults(keep, tunables):
    program = PAGE_FAULTS.format(root=str(Path(__file__).parents[2]), keep=keep)
    out = subprocess.run([sys.executable, "-c", program], text=True, check=True, timeout=60, stdout=subprocess.PIPE,
                         env=os.environ | {"GLIBC_TUNABLES": tunables}).stdout
    return int(out)

  kept, given_back = (num_page_faults(keep, "glibc.malloc.hugetlb=1") for keep in (True, False))
  assert kept * 10 < given_back
  # Without huge pages, for example in a notebook, the process keeps its settings.
  assert num_page_faults(True, "glibc.malloc.hugetlb=0") > 1000
