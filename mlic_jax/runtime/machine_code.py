"""Functions compiled by numba, whose machine code is cached on disk and runs without numba.

Importing numba and loading functions from its own cache take several times as long as coding an image. The cached
machine code needs llvmlite alone, the part of numba that wraps LLVM. A function is compiled if its file is missing or
damaged, or if other users can write to it (trusted_files.py).
"""
import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlic_jax.runtime import compilation_cache
from mlic_jax.runtime.trusted_files import read_trusted, write_trusted

LENGTH = "int64"  # type of the arguments after the arrays


def machine_code(arrays: Sequence[str], lengths: int) -> Callable[[Callable], Callable]:
  """Return a decorator that compiles a function of arrays and lengths without a result, or loads its machine code.

  The function indexes the arrays like C, without checks. It cannot raise errors or call other functions. It runs
  without the GIL. The compiled function checks that each array has one dimension, its dtype, and no gaps.

  Args:
    arrays: the dtype of each array, such as "int32".
    lengths: the number of integers after the arrays.
  """
  def decorate(function: Callable) -> Callable:
    checked = [np.ctypeslib.ndpointer(dtype, ndim=1, flags="C_CONTIGUOUS") for dtype in arrays]
    call = ctypes.CFUNCTYPE(None, *checked, *[ctypes.c_int64] * lengths)(_address(function, arrays, lengths))
    call.__doc__ = function.__doc__
    return call
  return decorate


_engines: list[Any] = []  # own the memory of the machine code


def _address(function: Callable, arrays: Sequence[str], lengths: int) -> int:
  """Return the address of a compiled function."""
  import llvmlite.binding as llvm
  llvm.initialize_native_target()
  llvm.initialize_native_asmprinter()
  machine = llvm.Target.from_default_triple().create_target_machine(
    llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), opt=3, codemodel="jitdefault")
  engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
  path = _path(function, arrays, lengths, llvm)
  code = _read(path) if path else None
  if code is None:
    code = _compiled(function, arrays, lengths, machine)
    if path:
      with contextlib.suppress(OSError):   # a full disk: the function is compiled in each process
        write_trusted(path, hashlib.sha256(code).digest() + code)
  engine.add_object_file(llvm.ObjectFileRef.from_data(code))
  engine.finalize_object()
  _engines.append(engine)
  address: int = engine.get_function_address(function.__name__)
  return address


def _read(path: str) -> bytes | None:
  """Return the machine code in a file; None if it is missing, damaged or not trusted."""
  content = read_trusted(path)
  size = hashlib.sha256().digest_size
  if content is None or hashlib.sha256(content[size:]).digest() != content[:size]:
    return None
  return content[size:]


def _compiled(function: Callable, arrays: Sequence[str], lengths: int, machine: Any) -> bytes:
  """Return an object file with the function under its name."""
  import llvmlite.binding as llvm
  import numba
  types = [numba.types.CPointer(getattr(numba.types, dtype)) for dtype in arrays]
  compiled = numba.cfunc(numba.void(*types, *[getattr(numba.types, LENGTH)] * lengths))(function)
  module = llvm.parse_assembly(compiled.inspect_llvm())
  module.get_function(compiled.native_name).name = function.__name__
  code: bytes = machine.emit_object(module)
  return code


def _path(function: Callable, arrays: Sequence[str], lengths: int, llvm: Any) -> str | None:
  """Return the file for the machine code of a function; None without a cache folder or without source."""
  folder = compilation_cache.folder("numba")
  source = getattr(sys.modules[function.__module__], "__file__", None)
  if not folder or not source:
    return None
  digest = hashlib.sha256()
  for file in (source, __file__):
    with open(file, "rb") as opened:
      digest.update(opened.read())
  digest.update(repr((*arrays, lengths, platform.python_version(), importlib.metadata.version("numba"),
                      importlib.metadata.version("llvmlite"), llvm.get_process_triple(), llvm.get_host_cpu_name(),
                      llvm.get_host_cpu_features().flatten())).encode())
  return os.path.join(folder, f"{function.__name__}-{digest.hexdigest()[:32]}")
