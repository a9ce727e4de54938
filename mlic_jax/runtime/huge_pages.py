"""Huge pages for programs on CPU, where a fifth of the time is page faults of new memory.

XLA allocates its intermediate results in each call and frees them afterwards. With pages of 4 KiB this takes longer
than some layers; with pages of 2 MiB it takes next to no time.
"""
import contextlib
import os
import platform
import sys

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def use_huge_pages() -> None:
  """Restart the running program once with huge pages of glibc, which reads this setting at its start only.

  Call it first in a program, before slow imports. It does nothing if the setting has a value, or without glibc. The
  kernel has to offer huge pages on request, which is its default; otherwise nothing changes.
  """
  tunables = os.environ.get(TUNABLES, "")
  if HUGE_PAGES in tunables or platform.libc_ver()[0] != "glibc":
    return
  os.environ[TUNABLES] = ":".join(filter(None, (tunables, f"{HUGE_PAGES}=1")))
  with contextlib.suppress(OSError):                   # if the interpreter cannot be restarted, it continues
    os.execv(sys.executable, sys.orig_argv)
