"""Huge pages for programs that compute on the host: on CPU a fifth of the time goes into touching fresh memory.

XLA asks for the memory of its intermediate results anew at every call, and gives it back afterwards. Page by page of
4 KiB that costs more than some layers do; with pages of 2 MiB next to nothing.
"""
import contextlib
import os
import platform
import sys

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def use_huge_pages() -> None:
  """Starts the running program again, once, with glibc's switch for huge pages; it is read at the start only.

  To be called first in a program, before anything slow is imported. Does nothing where the switch is set already, to
  whatever value, and without glibc. The kernel has to offer huge pages on request (the default); else nothing changes.
  """
  tunables = os.environ.get(TUNABLES, "")
  if HUGE_PAGES in tunables or platform.libc_ver()[0] != "glibc":
    return
  os.environ[TUNABLES] = ":".join(filter(None, (tunables, f"{HUGE_PAGES}=1")))
  with contextlib.suppress(OSError):                   # where the interpreter cannot be started again, it goes on
    os.execv(sys.executable, sys.orig_argv)
