"""Tests of huge pages: a program restarts once, with its arguments."""

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
