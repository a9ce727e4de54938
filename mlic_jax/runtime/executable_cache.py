"""Executables on disk that are found without tracing, lowering or compiling.

The cache of JAX (compilation_cache.py) finds an executable by its lowered program. Tracing and lowering are then most
of the time of a second start. Here the key is made of the inputs of tracing: name and static arguments of the function,
shapes of the other arguments, the code of this package, versions of JAX and of the other packages that are traced,
settings of JAX, and the processor. If the code has changed, the executable is found by its lowered program.

The key does not see changes that other code makes to this package at run time. Executables are therefore cached in the
commands only (startup.py), and on CPU in single processes only, where this is tested.
"""
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from mlic_jax.runtime import compilation_cache, startup
from mlic_jax.runtime.program_chain import Chain, LoweredChain
from mlic_jax.runtime.trusted_files import evict, read_trusted, write_trusted

SETTINGS: Any = jax.config  # its attributes are unknown to type checkers
TRACED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "ml_dtypes")
MAX_BYTES = 2**30   # size of the folder; the least recently used files are evicted


def with_executable_cache(function: Callable, name: str, description: str | None, jit: Callable = jax.jit,
                          **options: Any) -> Callable:
  """Return jit(function, **options) with executables cached on disk where possible.

  Args:
    function: a function of positional arguments.
    name: unique name of the function.
    description: all inputs of tracing besides the arguments and the code of this package; None if they are unknown,
      which turns the cache off.
    jit: jax.jit, parallel.pmap_over_batch, or program_chain.chain.
    options: options of `jit`. Static arguments are distinguished by their repr.
  """
  if description is None or startup.code is None or not SETTINGS.jax_enable_compilation_cache:
    return jit(function, **options)
  if jax.default_backend() != "cpu" or jax.process_count() > 1:
    return jit(function, **options)
  if jit is jax.jit and jax.device_count() > 1:   # jax 0.10 loads such an executable on all devices
    return jit(function, **options)
  if SETTINGS.jax_disable_jit or SETTINGS.jax_debug_nans or SETTINGS.jax_debug_infs:  # these run single operations
    return jit(function, **options)
  folder = compilation_cache.folder("programs")
  return _CachedFunction(function, name, description, jit, options, folder) if folder else jit(function, **options)


class _CachedFunction:
  """A function with an executable for each signature of its arguments."""

  def __init__(self, function: Callable, name: str, description: str, jit: Callable, options: dict[str, Any],
               folder: str):
    def renamed(*args):
      return function(*args)
    # Another name than without this cache, so that the cache of JAX has no entry from other processes: see _compiled.
    renamed.__name__ = renamed.__qualname__ = f"cached_{name.rpartition('.')[2]}"
    self._jitted, self._description, self._options = jit(renamed, **options), (name, description), options
    self._folder, self._static = folder, options.get("static_argnums", ())
    self._programs: dict[Any, Callable] = {}

  def __call__(self, *args):
    dynamic, leaves, signature = self._split_arguments(args)
    if any(isinstance(each, jax.core.Tracer) for each in leaves):   # called while another program is traced
      return self._jitted(*args)
    program = self._programs.get(signature)
    if program is None:
      program, _ = self._find(args, signature)
    return program(*dynamic)

  def prepare(self, *args) -> Any:
    """Load or compile the executable for arguments of these shapes; jax.ShapeDtypeStruct stands for an array.

    Returns:
      The shapes of the results; None if the executable was loaded or in memory.
    """
    *_, signature = self._split_arguments(args)
    if signature in self._programs:
      return None
    _, lowered = self._find(args, signature)
    return lowered and jax.tree.map(lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype), lowered.out_info)

  def _split_arguments(self, args: tuple) -> tuple[list, list, tuple]:
    """Return the arguments that are not static, their arrays, and the signature."""
    dynamic = [each for index, each in enumerate(args) if index not in self._static]
    leaves, tree = jax.tree.flatten(dynamic)
    shapes = tuple((np.shape(each), getattr(each, "dtype", type(each))) for each in leaves)
    return dynamic, leaves, (tree, shapes, tuple(args[index] for index in self._static))

  def _find(self, args: tuple, signature: tuple) -> tuple[Callable, jax.stages.Lowered | LoweredChain | None]:
    """Return the executable, and its lowered program unless it was on disk."""
    link = self._path(self._description, self._options, signature, _environment(), startup.code)
    program, lowered = _read(link) if link else None, None
    if program is None:
      with startup.no_garbage_collection():
        lowered = self._jitted.lower(*args)
      program = self._compiled(lowered, signature, link)
    self._programs[signature] = program
    return program, lowered

  def _compiled(self, lowered: jax.stages.Lowered | LoweredChain, signature: tuple, link: str | None) -> Callable:
    if link is None:
      return lowered.compile()
    file = self._path(self._options, signature, lowered.out_tree, _used_arguments(lowered), lowered.as_text(),
                      _environment())
    if file is None:
      return lowered.compile()
    program = _read(file)
    if program is not None and isinstance(lowered, LoweredChain):
      lowered.cancel()
    if program is None:
      before = compilation_cache.num_hits()
      program = lowered.compile()
      # XLA for CPU cannot serialize an executable from the cache of JAX: large ones lack kernels (jaxlib 0.5.3).
      if compilation_cache.num_hits() == before and not getattr(program, "has_cached_programs", False):
        _write(file, program)
    if startup.digest_of_code() == startup.code:   # otherwise the code on disk differs from the imported code
      _link(link, file)
    return program

  def _path(self, *key: Any) -> str | None:
    """Return the file of a key, by its digest; None if its repr has an address, which differs between processes."""
    text = repr(key)
    if re.search(r" at 0x[0-9a-f]+", text, re.IGNORECASE):
      return None
    return os.path.join(self._folder, hashlib.sha256(text.encode()).hexdigest()[:32])


def _used_arguments(lowered: jax.stages.Lowered | LoweredChain) -> list[int] | None:
  """Return the indices of arguments in the text of a program, from which JAX removes unused arguments.

  The option keep_unused would keep them, but jax 0.12 then never frees such programs."""
  if isinstance(lowered, LoweredChain):  # its text has the arguments of each program
    return None
  used = lowered._lowering.compile_args.get("kept_var_idx")
  return None if used is None else sorted(used)


def _read(path: str) -> Callable | None:
  """Return the executable in a file; None if it is missing, damaged, or not supported by this version of JAX.

  Unpickling runs code in the file, so files that other users can write are not read."""
  content = read_trusted(path)
  if content is None:
    return None
  try:
    found = pickle.loads(zlib.decompress(content))
    program = found if isinstance(found, Chain) else serialize_executable.deserialize_and_load(*found)
  except Exception:  # unpickling can raise any exception; the program is then compiled
    return None
  with contextlib.suppress(OSError):
    os.utime(path)
  return program


def _write(path: str, program: jax.stages.Compiled | Chain) -> None:
  """Write an executable. If it cannot be serialized, or the disk is full, it is compiled in each process."""
  try:
    content = pickle.dumps(program if isinstance(program, Chain) else serialize_executable.serialize(program))
  except Exception:  # as above
    return
  with contextlib.suppress(OSError):
    write_trusted(path, zlib.compress(content, 1))
    evict(os.path.dirname(path), MAX_BYTES)


def _link(path: str, program: str) -> None:
  """Make `path` a link to an existing file of an executable."""
  with contextlib.suppress(OSError):
    if os.path.exists(program):
      temporary = f"{path}-{os.getpid()}"
      os.symlink(os.path.basename(program), temporary)
      os.replace(temporary, path)


def _environment() -> tuple:
  """Return the part of the key that is not an input of tracing: versions, settings and hardware."""
  settings = [(name, getattr(jax.config, name, value)) for name, value in sorted(jax.config.values.items())
              if "cache" not in name]
  return _releases(), settings, os.environ.get("XLA_FLAGS"), jax.device_count(), _processor()


@functools.cache
def _releases() -> tuple[str, ...]:
  return platform.python_version(), *map(importlib.metadata.version, TRACED_PACKAGES)


@functools.cache
def _processor() -> tuple[str, ...]:
  """Return model, instruction sets and number of cores of the processor."""
  lines = []
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    first = file.read().split("\n\n")[0]
    lines = [line for line in first.splitlines() if line.startswith(("model name", "flags", "Features"))]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return platform.machine(), platform.processor(), *lines, str(cores)
