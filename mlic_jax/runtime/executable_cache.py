"""Whole programs on disk: what is found there is neither traced, nor lowered, nor compiled.

jax's own cache (compilation_cache.py) finds what a compiler made by what the compiler was given, so that a program is
traced and lowered first, and that takes most of a second start. Here it is found by what it would be traced from: its
name and its static arguments, the shapes of the others, the code of this package, the releases of jax and of what else
is called while tracing, the settings of jax, and the processor. When the code has changed, it is found by what it was
lowered to, as there.

Nothing in that tells what somebody's own code changes in this package before it calls it. So programs are kept in the
programs of the command line (program_start.py) alone: the same functions called from anywhere else are traced in every
process. (A configuration file is code as well, and has no business with changing the package.) And on CPUs, in single
processes: it was tried nowhere else.
"""
import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import os
import pickle
import platform
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from mlic_jax.runtime import compilation_cache, startup
from mlic_jax.runtime.trusted_files import read_trusted, write_trusted

SETTINGS: Any = jax.config  # which declares no attributes
CALLED_WHILE_TRACING = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "ml_dtypes")
MOST_BYTES = 2**30   # in the folder; what was not used for longest goes first


def kept(function: Callable, name: str, described: str | None, jit: Callable = jax.jit, **options: Any) -> Callable:
  """jit(function, **options), whose programs are found on disk where that can be; arguments are given by position.

  Args:
    function: what is compiled.
    name: no other function has it.
    described: what it is traced from besides its arguments and the code of this package; None when that cannot be said.
    jit: jax.jit, or parallel.pmap_over_batch.
    options: of `jit`. Static arguments are told apart by what they print as.
  """
  if described is None or startup.code is None or not SETTINGS.jax_enable_compilation_cache:
    return jit(function, **options)
  if jax.default_backend() != "cpu" or jax.process_count() > 1:
    return jit(function, **options)
  if jit is jax.jit and jax.device_count() > 1:   # jax 0.10 reads such a program for all devices
    return jit(function, **options)
  if SETTINGS.jax_disable_jit or SETTINGS.jax_debug_nans or SETTINGS.jax_debug_infs:  # of single operations
    return jit(function, **options)
  folder = compilation_cache.folder("programs")
  return _Kept(function, name, described, jit, options, folder) if folder else jit(function, **options)


class _Kept:
  """A compiled program for every signature of the arguments."""

  def __init__(self, function: Callable, name: str, described: str, jit: Callable, options: dict[str, Any],
               folder: str):
    def of_its_own(*args):
      return function(*args)
    # Another name, so that jax's cache does not have it from a process that keeps no programs: see _compiled.
    of_its_own.__name__ = of_its_own.__qualname__ = f"kept_{name.rpartition('.')[2]}"
    self._jitted, self._described, self._options = jit(of_its_own, **options), (name, described), options
    self._folder, self._static = folder, options.get("static_argnums", ())
    self._programs: dict[Any, Callable] = {}

  def __call__(self, *args):
    dynamic, leaves, signature = self._taken_apart(args)
    if any(isinstance(each, jax.core.Tracer) for each in leaves):   # a part of another program
      return self._jitted(*args)
    program = self._programs.get(signature)
    if program is None:
      program, _ = self._find(args, signature)
    return program(*dynamic)

  def prepare(self, *args) -> Any:
    """Has the program for such arguments, before there are any: jax.ShapeDtypeStruct stands for an array.

    Returns:
      What the function makes of them, in shapes; None when the program was there already, here or on disk.
    """
    *_, signature = self._taken_apart(args)
    if signature in self._programs:
      return None
    _, lowered = self._find(args, signature)
    return lowered and jax.tree.map(lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype), lowered.out_info)

  def _taken_apart(self, args: tuple) -> tuple[list, list, tuple]:
    """The arguments that are not static, their arrays, and what a program is known by."""
    dynamic = [each for place, each in enumerate(args) if place not in self._static]
    leaves, tree = jax.tree.flatten(dynamic)
    shapes = tuple((np.shape(each), getattr(each, "dtype", type(each))) for each in leaves)
    return dynamic, leaves, (tree, shapes, tuple(args[place] for place in self._static))

  def _find(self, args: tuple, signature: tuple) -> tuple[Callable, jax.stages.Lowered | None]:
    """The program, which is there from now on, and what it was compiled from unless it was on disk."""
    link = self._path(self._described, self._options, signature, _surroundings(), startup.code)
    program, lowered = _read(link) if link else None, None
    if program is None:
      with _uncollected():
        lowered = self._jitted.lower(*args)
      program = self._compiled(lowered, signature, link)
    self._programs[signature] = program
    return program, lowered

  def _compiled(self, lowered: jax.stages.Lowered, signature: tuple, link: str | None) -> Callable:
    if link is None:
      return lowered.compile()
    file = self._path(self._options, signature, lowered.out_tree, _used(lowered), lowered.as_text(), _surroundings())
    if file is None:
      return lowered.compile()
    program = _read(file)
    if program is None:
      _listen()
      before = _num_taken()
      program = lowered.compile()
      # XLA for CPUs cannot write out once more what it has read: parts of it are missing then (jaxlib 0.5.3, large
      # programs).
      if _num_taken() == before:
        _write(file, program)
    if startup.digest_of_code() == startup.code:   # else it was edited since, perhaps before the import
      _link(link, file)
    return program

  def _path(self, *of: Any) -> str | None:
    """The file of something, by its digest; None when it prints with an address, which is another in every process."""
    text = repr(of)
    if re.search(r" at 0x[0-9a-f]+", text, re.IGNORECASE):
      return None
    return os.path.join(self._folder, hashlib.sha256(text.encode()).hexdigest()[:32])


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
  """Python's collector rests. Tracing a model makes millions of objects that are needed until its end, and a fifth of
  its time is the search among them for some that are not."""
  was_on = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_on:
      gc.enable()


def _used(lowered: jax.stages.Lowered) -> list[int] | None:
  """Which arguments the text of a program has: jax leaves out those that nothing depends on, and says so nowhere else.
  (keep_unused would have them stay, and jax 0.12 then holds every such program for ever.)"""
  used = lowered._lowering.compile_args.get("kept_var_idx")
  return None if used is None else sorted(used)


_taken = threading.local()  # .count: programs that jax took from its own cache in this thread


@functools.cache
def _listen() -> None:
  def hear(event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      _taken.count = _num_taken() + 1
  jax.monitoring.register_event_listener(hear)


def _num_taken() -> int:
  return getattr(_taken, "count", 0)


def _read(path: str) -> Callable | None:
  """The program in a file; None when there is none, or it is damaged, or this jax or this code does not take it.

  Unpickling runs what the file says, so a file that another user can have written is not read."""
  content = read_trusted(path)
  if content is None:
    return None
  try:
    program = serialize_executable.deserialize_and_load(*pickle.loads(zlib.decompress(content)))
  except Exception:  # what a pickle raises, of classes that are not there any more, is anything; it is compiled instead
    return None
  with contextlib.suppress(OSError):
    os.utime(path)
  return program


def _write(path: str, program: jax.stages.Compiled) -> None:
  """What cannot be written out is compiled in every process, and so is what a full disk does not take."""
  try:
    content = pickle.dumps(serialize_executable.serialize(program))
  except Exception:  # as above
    return
  with contextlib.suppress(OSError):
    write_trusted(path, zlib.compress(content, 1))
    _make_room(os.path.dirname(path))


def _link(path: str, program: str) -> None:
  """Makes `path` a link to the file of a program that is there."""
  with contextlib.suppress(OSError):
    if os.path.exists(program):
      temporary = f"{path}-{os.getpid()}"
      os.symlink(os.path.basename(program), temporary)
      os.replace(temporary, path)


def _make_room(folder: str) -> None:
  """Removes what was not used for longest, until the rest has MOST_BYTES; and links to what is not there any more."""
  links = [each.path for each in os.scandir(folder) if each.is_symlink()]
  files, total = [(each.stat(), each.path) for each in os.scandir(folder) if not each.is_symlink()], 0
  for status, path in sorted(files, key=lambda each: each[0].st_mtime, reverse=True):
    total += status.st_size
    if total > MOST_BYTES:
      os.unlink(path)
  for path in links:
    if not os.path.exists(path):
      os.unlink(path)


def _surroundings() -> tuple:
  """What a program depends on besides what it is traced from."""
  settings = [(name, getattr(jax.config, name, value)) for name, value in sorted(jax.config.values.items())
              if "cache" not in name]
  return _releases(), settings, os.environ.get("XLA_FLAGS"), jax.device_count(), _processor()


@functools.cache
def _releases() -> tuple[str, ...]:
  return platform.python_version(), *map(importlib.metadata.version, CALLED_WHILE_TRACING)


@functools.cache
def _processor() -> tuple[str, ...]:
  """What it is called, what it can do, and how many of it there are."""
  lines = []
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    first = file.read().split("\n\n")[0]
    lines = [line for line in first.splitlines() if line.startswith(("model name", "flags", "Features"))]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return platform.machine(), platform.processor(), *lines, str(cores)
