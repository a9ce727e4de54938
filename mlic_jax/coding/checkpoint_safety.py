"""Safety checks for model directories from untrusted sources. A model directory is data: loading it runs no code.

    modules     Python modules that config.json names are imported only if the caller allows it
    paths       only regular files and folders inside the directory are read
    arrays      parameters are trees of numeric arrays, and CDF tables have at most the size that the model needs

No pickle is loaded: NumPy is called with allow_pickle=False, and Orbax does not use pickles.
"""
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlic_jax.coding.cdf_tables import CELLS_MAX, CDFTable, z_rows
from mlic_jax.config import CodecConfig
from mlic_jax.errors import one_line, system_problem
from mlic_jax.model.registry import custom_modules
from mlic_jax.paths import is_remote

PARTS = re.compile(r"[0-9a-f]{16}")   # name of the folder of params/ and tables.npz in remote storage: a fingerprint


class CheckpointError(ValueError):
  """The model directory cannot be used; the message is one line with the directory, the found and the expected."""


def check_modules(path: Path, config: CodecConfig, allowed: bool | Collection[str]) -> None:
  """Raises CheckpointError if a model directory names Python modules that are not allowed.

  allowed: True allows all modules, False none, and a collection those that it names."""
  if isinstance(allowed, bool):
    allowed = custom_modules(config) if allowed else ()
  for name in custom_modules(config):
    if name not in allowed:
      raise CheckpointError(f"{path}: config.json names the Python module {name!r}, and loading would run its code; if "
                            "you trust it, add --allow-custom-modules (in Python allow_custom_modules=True)")


def parts_folder(path: Path, settings: Mapping[str, Any]) -> Path:
  """Returns the folder with params/ and tables.npz. CheckpointError unless it is inside the model directory."""
  parts = settings.get("parts", "")
  if parts and not (isinstance(parts, str) and PARTS.fullmatch(parts)):
    raise CheckpointError(f"{path}: config.json has parts={parts!r}; wanted 16 hexadecimal digits")
  return path / parts if parts else path


def check_files(path: Path, parts: Path) -> None:
  """Raises CheckpointError unless config.json, tables.npz and params/ are regular files and folders in the directory.

  Links inside the directory may not lead out of it; the directory itself may be a link. Remote storage has no links."""
  if is_remote(path):
    return
  root = path.resolve()
  for each in (path / "config.json", parts / "tables.npz", parts / "params", *_below(parts / "params")):
    if each.is_symlink() and not each.resolve().is_relative_to(root):
      raise CheckpointError(f"{path}: {each.relative_to(path)} is a link to {os.readlink(each)!r}, outside of the "
                            "model directory; wanted a copy without links")
    mode = each.stat().st_mode if each.exists() else stat.S_IFREG   # reading reports missing files
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
      raise CheckpointError(f"{path}: {each.relative_to(path)} is neither a file nor a folder")


def _below(folder: Path) -> Iterator[Path]:
  for directory, folders, files in os.walk(folder):
    yield from (Path(directory, name) for name in (*folders, *files))


def check_arrays(path: Path, params: Any) -> dict[str, Any]:
  """Returns the parameters. CheckpointError unless they are nested dicts of numeric arrays."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  for keys, leaf in leaves:
    if not all(isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str) for key in keys) or not keys:
      raise CheckpointError(f"{path}: the parameters are not nested dictionaries of arrays")
    if not isinstance(leaf, np.ndarray) or not (leaf.dtype.kind in "fiu" or leaf.dtype == jax.numpy.bfloat16):
      raise CheckpointError(f"{path}: parameter {'/'.join(key.key for key in keys)} is {type(leaf).__name__}, "
                            "wanted an array of numbers")
  return params


def read_table(path: Path, file: Path, config: CodecConfig) -> CDFTable:
  """Reads the CDF table in an NPZ file. CheckpointError if it is damaged or larger than the model needs."""
  size_max = 4 * (int(z_rows(config)[-1]) + 1) * CELLS_MAX + 1024    # bytes of an int32 array and its header
  try:
    with zipfile.ZipFile(file) as archive:                       # a small file may hold terabytes of zeros
      largest = max((entry.file_size for entry in archive.infolist()), default=0)
      if largest > size_max:
        raise CheckpointError(f"{path}: tables.npz has an array of {largest} bytes; the model needs at most {size_max}")
    with np.load(file, allow_pickle=False) as arrays:
      lookup, offset = (np.atleast_1d(arrays[name]) for name in ("lookup", "offset"))
    if lookup.ndim != 1 or offset.ndim != 1 or lookup.dtype.kind not in "iu" or offset.dtype.kind not in "iu":
      raise CheckpointError(f"{path}: tables.npz does not hold one-dimensional integer arrays")
    return CDFTable(lookup.astype(np.int32), offset.astype(np.int32))
  except CheckpointError:
    raise
  except Exception as error:  # zipfile and NumPy raise many types for damaged files
    raise unreadable(path, "tables.npz", error) from error


def unreadable(path: Path, what: str, error: BaseException) -> CheckpointError:
  """Returns the error for an unreadable part of a model directory: a problem of the system, or else damage."""
  if problem := system_problem(error):
    return CheckpointError(f"{path}: {what} could not be read: {problem}")
  return CheckpointError(f"{path}: {what} cannot be read ({one_line(error)})")
