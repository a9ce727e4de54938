"""A function that is compiled for every size of picture, and keeps what it compiled for the sizes used last.

What is compiled for one padded size of nano takes some 95 MB and 600 memory mappings, of which Linux allows a process
65,530: jax alone keeps all of it, and a folder of photographs of 128 sizes is more than a process can hold. What is let
go comes back from the disk (kept_programs.py, compilation_cache.py).
"""
import collections
import ctypes
import platform
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from mlic_jax.runtime.executable_cache import kept

SIZES = 8  # kept of each function


class ShapeCache:
  """jax.jit(function), which forgets.

  Args:
    function: its arguments are given by position.
    size: the place of the array whose shape says for which size it is compiled, or of a tuple that begins with it.
    module: the place of a static argument that has sizes of its own.
    static: that of another static argument.
    describe: what the module is to a program on disk, None for what none is kept of (kept_programs.py).
  """

  def __init__(self, function: Callable, size: int, module: int | None = None, static: int | None = None,
               describe: Callable[[Any], str | None] = repr):
    self.__doc__, self.__name__, self.__module__ = function.__doc__, function.__name__, function.__module__
    self._describe = describe
    self._function, self._size, self._module = function, size, module
    self._static = tuple(place for place in (module, static) if place is not None)
    self._kept: collections.OrderedDict[tuple, _OneAtFirst] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __call__(self, *args):
    return self._for(args)(*args)

  def prepare(self, *args) -> Any:
    """Compiles for such arguments, where programs are kept on disk; as kept_programs.py has it, None elsewhere."""
    return self._for(args).prepare(*args)

  def _for(self, args: tuple) -> "_OneAtFirst":
    of_size = args[self._size]
    shape = np.shape(of_size[0] if isinstance(of_size, tuple) else of_size)
    key = shape, None if self._module is None else args[self._module]
    with self._lock:
      compiled = self._kept.pop(key, None) or self._new(key[1])
      self._kept[key] = compiled  # at the end: the first one is the one that was used the longest ago
      dropped = [self._kept.popitem(last=False) for _ in range(len(self._kept) - SIZES)]
    if dropped:
      dropped.clear()  # which frees them, unless a thread is inside
      _give_back()
    return compiled

  def is_kept(self, shape: tuple[int, ...], module=None) -> bool:
    """Whether it was called for that size lately."""
    return (shape, module) in self._kept

  def _new(self, module: Any) -> "_OneAtFirst":
    """A function object of its own: jax holds what it compiles for as long as that."""
    def function(*args):
      return self._function(*args)
    function.__name__ = function.__qualname__ = self.__name__
    function = kept(function, f"{self.__module__}.{self.__name__}", self._describe(module), static_argnums=self._static)
    return _OneAtFirst(function, self._static)


class _OneAtFirst:
  """A function that compiles when it is called first: of threads that come then, one compiles, and the others wait."""

  def __init__(self, function: Callable, static: tuple[int, ...]):
    self._function, self._static, self._lock = function, static, threading.Lock()
    self._met: set[tuple] = set()

  def __call__(self, *args):
    static = tuple(args[place] for place in self._static)
    if static in self._met:
      return self._function(*args)
    with self._lock:
      result = self._function(*args)
    self._met.add(static)
    return result

  def prepare(self, *args) -> Any:
    with self._lock:
      return self._function.prepare(*args) if hasattr(self._function, "prepare") else None


def shape_cached(**places: Any) -> Callable[[Callable], ShapeCache]:
  """The decorator; its arguments are those of ShapeCache."""
  return lambda function: ShapeCache(function, **places)


def _give_back() -> None:
  """Memory that was freed goes back to the system, which glibc puts off."""
  if platform.libc_ver()[0] == "glibc":
    ctypes.CDLL(None).malloc_trim(0)
