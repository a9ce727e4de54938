"""Functions that are compiled for each image size, with a cache of the sizes used last.

The functions of nano for one padded size take about 95 MB and 600 memory mappings, and Linux allows 65,530 mappings per
process. JAX alone never frees them, so a folder of images of 128 sizes exceeds the limits of a process. Evicted
functions are read from disk again (executable_cache.py, compilation_cache.py).
"""
import collections
import ctypes
import platform
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from mlic_jax.runtime.executable_cache import with_executable_cache

MAX_SIZES = 8  # cached sizes of each function


class ShapeCache:
  """jax.jit(function) with an LRU cache of compiled sizes.

  Args:
    function: a function of positional arguments.
    size: index of the array whose shape is the size, or of a tuple that begins with this array.
    module: index of a static argument; each of its values has its own sizes.
    static: index of another static argument.
    describe: returns the description of a module for executable_cache.py, or None for modules that are not cached on
      disk.
  """

  def __init__(self, function: Callable, size: int, module: int | None = None, static: int | None = None,
               describe: Callable[[Any], str | None] = repr):
    self.__doc__, self.__name__, self.__module__ = function.__doc__, function.__name__, function.__module__
    self._describe = describe
    self._function, self._size, self._module = function, size, module
    self._static = tuple(index for index in (module, static) if index is not None)
    self._cache: collections.OrderedDict[tuple, _CompileOnce] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __call__(self, *args):
    return self._for(args)(*args)

  def prepare(self, *args) -> Any:
    """Compile for such arguments if executables are cached on disk, see executable_cache.py; otherwise return None."""
    return self._for(args).prepare(*args)

  def _for(self, args: tuple) -> "_CompileOnce":
    array = args[self._size]
    shape = np.shape(array[0] if isinstance(array, tuple) else array)
    key = shape, None if self._module is None else args[self._module]
    with self._lock:
      compiled = self._cache.pop(key, None) or self._new(key[1])
      self._cache[key] = compiled  # at the end: the first entry is the least recently used
      dropped = [self._cache.popitem(last=False) for _ in range(len(self._cache) - MAX_SIZES)]
    if dropped:
      dropped.clear()  # frees them, unless a thread is running one
      trim_memory()
    return compiled

  def is_cached(self, shape: tuple[int, ...], module=None) -> bool:
    """Return whether the function of a size is cached."""
    return (shape, module) in self._cache

  def _new(self, module: Any) -> "_CompileOnce":
    """Return a new function object, because JAX caches compiled functions as long as their function exists."""
    def function(*args):
      return self._function(*args)
    function.__name__ = function.__qualname__ = self.__name__
    name = f"{self.__module__}.{self.__name__}"
    function = with_executable_cache(function, name, self._describe(module), static_argnums=self._static)
    return _CompileOnce(function, self._static)


class _CompileOnce:
  """A function that one thread compiles in the first call, while other threads wait."""

  def __init__(self, function: Callable, static: tuple[int, ...]):
    self._function, self._static, self._lock = function, static, threading.Lock()
    self._compiled: set[tuple] = set()

  def __call__(self, *args):
    static = tuple(args[index] for index in self._static)
    if static in self._compiled:
      return self._function(*args)
    with self._lock:
      result = self._function(*args)
    self._compiled.add(static)
    return result

  def prepare(self, *args) -> Any:
    with self._lock:
      return self._function.prepare(*args) if hasattr(self._function, "prepare") else None


def shape_cached(**options: Any) -> Callable[[Callable], ShapeCache]:
  """Return a decorator with the arguments of ShapeCache."""
  return lambda function: ShapeCache(function, **options)


def trim_memory() -> None:
  """Return freed memory to the system, which glibc delays."""
  if platform.libc_ver()[0] == "glibc":
    ctypes.CDLL(None).malloc_trim(0)
