"""Huge pages for programs on CPU, where a fifth of the time is page faults of new memory.

XLA allocates its intermediate results in each call and frees them afterwards. With pages of 4 KiB this takes longer
than some layers; with pages of 2 MiB it takes next to no time.
"""
import contextlib
import ctypes
import os
import platform
import sys

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
# Numbers of malloc.h, and the bytes that they are set to. The padding is below 64 MiB, the size of a thread's heap.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = (-1, 2**31 - 1), (-2, 48 * 2**20), (-3, 2**30)


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


def keep_freed_memory() -> None:
  """Let this process keep the memory that it frees, in heaps that grow by many huge pages at once.

  A chain of programs (program_chain.py) allocates the arrays between its programs anew in every call. By default glibc
  gives much of their memory back to the kernel, and heaps of threads grow by small pages. It does nothing in a process
  without the huge pages of `use_huge_pages`, such as a notebook. It affects memory that is allocated later.
  """
  if f"{HUGE_PAGES}=1" not in os.environ.get(TUNABLES, "") or platform.libc_ver()[0] != "glibc":
    return
  mallopt = ctypes.CDLL(None).mallopt
  for option in (TOP_PAD, MMAP_THRESHOLD, TRIM_THRESHOLD):
    mallopt(*option)
