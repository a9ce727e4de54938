"""Model directories: config, parameters and CDF tables of a trained model, without training state.

    CKPT/config.json   {"format": 1, "model": fields of CodecConfig, "training": record of the run, or null,
                        "fingerprint": 16 hexadecimal digits, a hash of fields, parameters and table}
    CKPT/params/       the parameters, written by Orbax
    CKPT/tables.npz    the integer CDF table, see coding/cdf_tables.py

In remote storage params/ and tables.npz lie in CKPT/PARTS, where PARTS is the entry "parts" of config.json. The checks
for directories from untrusted sources are in checkpoint_safety.py.
"""
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mlic_jax.atomic_io import write_whole
from mlic_jax.coding import params_cache
from mlic_jax.coding.cdf_tables import CDFTable, TableError, build_table, check_table, z_rows
from mlic_jax.coding.checkpoint_safety import (
  CheckpointError,
  check_arrays,
  check_files,
  check_modules,
  parts_folder,
  read_table,
  unreadable,
)
from mlic_jax.config import CodecConfig
from mlic_jax.console import printable
from mlic_jax.model.mlic import build
from mlic_jax.model.param_shapes import param_shapes
from mlic_jax.paths import as_path, check_utf8, copy_files, is_remote, local_copy, remove_folder
from mlic_jax.runtime.platforms import check_platforms

FORMAT = 1
NEUTRAL = {"scan_unroll": 0}  # fields of older versions that change no result, with the values that fingerprints have
REPLACED = "replaced"   # suffix of the old model directory while a new one replaces it
CONFIG_BYTES_MAX = 2**24


class Model(NamedTuple):
  """The content of a model directory."""
  name: str                         # name of the directory, for tables and plots
  config: CodecConfig
  variables: dict[str, Any]         # {"params": ...}, NumPy arrays
  table: CDFTable
  fingerprint: bytes                # 8 bytes: hash of config, parameters and table, which decide how a file decodes
  training: dict[str, Any] | None   # record of the training run, or None
  allow_custom_modules: bool | Collection[str] = False   # as in load_model


def save_model(path: str | os.PathLike, config: CodecConfig, variables: Mapping[str, Any],
               training: dict[str, Any] | None = None) -> None:
  """Builds the CDF table and writes a model directory. It replaces an existing one once the new one is complete.

  With several processes, call it in each: process 0 writes.

  Args:
    path: the model directory.
    config: the config of the model.
    variables: {"params": ...} of this config, on one device.
    training: the record of the run; values have to be JSON serializable.

  CheckpointError if a parameter is not finite.
  """
  check_platforms()
  if jax.process_index():
    return
  path = as_path(path)
  check_utf8(path)
  params = jax.tree.map(np.asarray, jax.device_get(dict(variables["params"])))
  for name, value in _flatten(params):
    if not np.isfinite(value).all():
      raise CheckpointError(f"parameter {name} is not finite; the model is not written to {path}")
  fields = config.to_dict()
  table = build_table(config, {"params": params})
  fingerprint = _fingerprint(fields | NEUTRAL, params, table).hex()
  settings = {"format": FORMAT, "model": fields, "training": training, "fingerprint": fingerprint}
  _json(settings)  # raises TypeError for values that are not JSON, before anything is written
  if is_remote(path):
    _write_remote(path, settings, params, table)
  else:
    _write_local(Path(os.path.realpath(path)), settings, params, table)


def _write_parts(folder: Path, params: dict[str, Any], table: CDFTable) -> None:
  np.savez_compressed(folder / "tables.npz", lookup=table.lookup, offset=table.offset)
  _checkpointer().save(folder / "params", params)


def _write_local(path: Path, settings: dict[str, Any], params: dict[str, Any], table: CDFTable) -> None:
  """Writes a complete directory and renames it to `path`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = _hidden_sibling(path, f"{os.getpid()}.partial")
  shutil.rmtree(partial, ignore_errors=True)             # left by a killed process with the same PID
  try:
    partial.mkdir()
    (partial / "config.json").write_text(_json(settings), "utf-8")
    _write_parts(partial, params, table)
    _replace(path, partial)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _replace(path: Path, new: Path) -> None:
  """Replaces the directory `path` by `new` in two renames. Between them find_model finds the old directory."""
  old = _hidden_sibling(path, REPLACED)
  if path.exists():
    shutil.rmtree(old, ignore_errors=True)             # left by a run that was killed after its second rename
    path.rename(old)
  try:
    new.rename(path)
  except OSError:
    if old.exists():
      old.rename(path)
    raise
  shutil.rmtree(old, ignore_errors=True)


def _hidden_sibling(path: Path, suffix: str) -> Path:
  """Returns a hidden path beside `path`. It has a hash of the name, which may already have the maximum length."""
  path = Path(os.path.realpath(path))
  return path.parent / f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.{suffix}"


def _write_remote(path: Path, settings: dict[str, Any], params: dict[str, Any], table: CDFTable) -> None:
  """Writes parameters and table to a folder of their own, and then config.json, which names that folder.

  Remote storage has no atomic rename of folders, but a single file appears at once."""
  parts = settings["fingerprint"]
  with tempfile.TemporaryDirectory(prefix="mlic_jax_") as temporary:
    _write_parts(Path(temporary), params, table)
    copy_files(Path(temporary), path / parts)
  write_whole(path / "config.json", _json(dict(settings, parts=parts)))
  for older in path.iterdir():
    if older.name not in (parts, "config.json"):
      remove_folder(older)


def _json(settings: dict[str, Any]) -> str:
  return json.dumps(settings, indent=2) + "\n"


def load_model(path: str | os.PathLike, allow_custom_modules: bool | Collection[str] = False) -> Model:
  """Reads a model directory, or the one in the workdir of a training run. CheckpointError if it cannot be used.

  allow_custom_modules: whether Python modules that the directory names for contexts or transforms are imported, or the
    names of allowed modules. A directory from an untrusted source could name any code.
  """
  check_platforms()
  path, named = _find(as_path(path))
  check_utf8(path)
  settings = _read_settings(path)
  parts_path = parts_folder(path, settings)
  check_files(path, parts_path)
  try:
    config = CodecConfig.from_dict(settings["model"])
    check_modules(path, config, allow_custom_modules)
    build(config)
  except CheckpointError:
    raise
  except (ValueError, TypeError, OverflowError) as error:
    raise CheckpointError(f"{path}: {error}") from None
  with local_copy(parts_path) as parts:
    params, table, fingerprint = _read_parts(path, parts, settings, config)
  _check_table(path, config, table)
  written = settings.get("fingerprint")  # older directories have none
  if written not in (None, fingerprint.hex()):
    raise CheckpointError(f"{path}: the fingerprint of its files is {fingerprint.hex()}, config.json has {written}")
  folder = named if is_remote(named) else named.resolve()
  name = printable(folder.parent.name if folder.name == "model" else folder.name)
  return Model(name, config, {"params": params}, table, fingerprint, settings.get("training"), allow_custom_modules)


def _read_parts(path: Path, parts: Path, settings: dict[str, Any], config: CodecConfig,
                ) -> tuple[dict[str, Any], CDFTable, bytes]:
  """Returns parameters, table and fingerprint. A matching fingerprint saves two seconds: the model need not be traced.

  A copy of the parameters is used if it has the fingerprint in config.json; see params_cache.py."""
  written = settings.get("fingerprint")
  copy = None if is_remote(path) else params_cache.path_of_copy(parts / "params", written)
  params = params_cache.read(copy) if copy else None
  if params is not None:
    table = read_table(path, parts / "tables.npz", config)
    fingerprint = _fingerprint(settings["model"] | NEUTRAL, params, table)
    if fingerprint.hex() == written:
      return params, table, fingerprint
  params, table = _restore(path, parts / "params"), read_table(path, parts / "tables.npz", config)
  fingerprint = _find_fingerprint(settings["model"], params, table, written)
  if written != fingerprint.hex():
    _check_params(path, config, params)
  elif copy:
    params_cache.write(copy, _flatten_names(params))
  return params, table, fingerprint


def _restore(path: Path, params: Path) -> dict[str, Any]:
  try:
    # As asyncio returns to the usual handler of SIGINT, the signal module formats what Orbax has read.
    with np.printoptions(threshold=0, edgeitems=1):
      restored = _checkpointer().restore(params.absolute())  # Orbax needs an absolute path
  except Exception as error:  # Orbax and TensorStore raise many types for damaged files
    raise unreadable(path, "the parameters", error) from error
  return check_arrays(path, restored)


def find_model(path: str | os.PathLike) -> Path:
  """Returns the model directory at `path`, or in the workdir at `path`. CheckpointError if there is none."""
  return _find(as_path(path))[0]


def _find(path: Path) -> tuple[Path, Path]:
  """Returns the folder of the model, and the path that the model is named after.

  They differ if a run was killed while it replaced the model."""
  for named in (path / "model", path):  # a workdir has a config.json of its own
    for folder in (named,) if is_remote(named) else (named, _hidden_sibling(named, REPLACED)):
      if (folder / "config.json").is_file():
        return folder, named
  problem = "is no model directory (config.json is missing)" if path.exists() else "no such directory"
  raise CheckpointError(f"{path}: {problem}; wanted a model directory, or the workdir of a training run that has one")


def _read_settings(path: Path) -> dict[str, Any]:
  file = path / "config.json"
  try:
    status: Any = file.stat()            # the size of a remote file has another name in etils
    if (status.length if is_remote(path) else status.st_size) > CONFIG_BYTES_MAX:
      raise CheckpointError(f"{path}: config.json has more than {CONFIG_BYTES_MAX} bytes")
    settings = json.loads(file.read_text("utf-8"))
    version, fields, training = settings["format"], settings["model"], settings.get("training")
  except CheckpointError:
    raise
  except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise unreadable(path, "config.json", error) from error
  if version != FORMAT or not isinstance(fields, dict):
    raise CheckpointError(f"{path}: format {printable(repr(version))[:40]} of a model directory; this version reads "
                          f"format {FORMAT}")
  if not (training is None or isinstance(training, dict)):
    raise CheckpointError(f"{path}: training in config.json is {type(training).__name__}; wanted an object or null")
  return settings


def _check_params(path: Path, config: CodecConfig, params: dict[str, Any]) -> None:
  wanted, found = ({name: value.shape for name, value in _flatten(tree)} for tree in (param_shapes(config), params))
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise CheckpointError(f"{path}: parameter {name} has shape {found.get(name, 'none')}, "
                            f"but config.json implies {wanted.get(name, 'none')}")


def _check_table(path: Path, config: CodecConfig, table: CDFTable) -> None:
  rows = int(z_rows(config)[-1]) + 1
  if table.offset.shape != (rows,):
    raise CheckpointError(f"{path}: tables.npz has {table.offset.size} rows, but the model needs {rows}")
  try:
    check_table(table)
  except TableError as error:
    raise CheckpointError(f"{path}: tables.npz: {error}") from None


def _find_fingerprint(fields: dict[str, Any], params: dict[str, Any], table: CDFTable, written: str | None) -> bytes:
  """Returns the fingerprint of a model: `written` if it is that of the model with any value of scan_unroll.

  In older versions the fingerprint depended on the value of the field scan_unroll."""
  first = _fingerprint(fields | NEUTRAL, params, table)
  if written is None or first.hex() == written:
    return first
  for value in (fields.get("scan_unroll", 0), *range(1, fields.get("num_slices", 1) + 1)):
    if (fingerprint := _fingerprint(fields | {"scan_unroll": value}, params, table)).hex() == written:
      return fingerprint
  return first


def _fingerprint(fields: dict[str, Any], params: dict[str, Any], table: CDFTable) -> bytes:
  digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
  for name, value in [*sorted(_flatten(params)), ("lookup", table.lookup), ("offset", table.offset)]:
    digest.update(f"{name} {value.shape} {value.dtype}".encode())
    digest.update(np.ascontiguousarray(value).data)
  return digest.digest()[:8]


def _flatten(params: Mapping[str, Any]) -> list[tuple[str, Any]]:
  return [("/".join(names), value) for names, value in _flatten_names(params)]


def _flatten_names(params: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return [(tuple(key.key for key in keys), value) for keys, value in leaves]


def _checkpointer():
  import orbax.checkpoint as ocp  # takes a second to import, and most commands do not need it
  this_process = ocp.options.MultiprocessingOptions(
    active_processes={jax.process_index()}, primary_host=jax.process_index(), barrier_sync_key_prefix="mlic_jax_model")
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=this_process),
                          multiprocessing_options=this_process)
