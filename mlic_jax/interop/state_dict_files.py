"""Reads and writes files of state dicts: NPZ files with NumPy, and files of torch.save with PyTorch.

No code in a file runs: PyTorch loads weights only, and NumPy refuses pickled objects.
"""

import importlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mlic_jax.atomic_io import check_output, whole_file
from mlic_jax.interop.state_dict_names import WeightsError, unwrapped

NPZ = ".npz"
PYTORCH = (".pth.tar", ".pth", ".pt")


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the state dict in an NPZ file or in a file of torch.save, as NumPy arrays.

  Raises OSError if there is no such file, and WeightsError in one line if it holds no state dict or PyTorch is not
  installed.
  """
  with open(path, "rb"):  # errors of PyTorch and NumPy do not name the file
    pass
  return _read_npz(path) if Path(path).name.endswith(NPZ) else _read_pytorch(path)


def _read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as content:
      arrays = dict(content)
  except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
    raise WeightsError(f"{path}: NumPy cannot read it as an NPZ file ({_one_line(error)})") from error
  if bad := next((name for name, value in arrays.items() if not isinstance(value, np.ndarray)), None):
    raise WeightsError(f"{path}: {bad!r} is not an array; the name of a torch.save file ends in {' or '.join(PYTORCH)}")
  return arrays


def _read_pytorch(path: str | os.PathLike) -> dict[str, np.ndarray]:
  torch = _torch(path, "reading")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about pickles that are refused anyway
      content = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    found = re.search(r"GLOBAL (\S+)", str(error))
    what = f"more than weights ({found[1]})" if found else "more than weights"
    raise WeightsError(f"{path}: holds {what}; such a file could run code, so it is refused") from error
  except Exception as error:  # PyTorch raises many types for damaged files
    raise WeightsError(f"{path}: PyTorch cannot read it ({_one_line(error)})") from error
  content = unwrapped(content)
  if not isinstance(content, dict) or not all(hasattr(value, "numpy") for value in content.values()):
    raise WeightsError(f"{path}: holds no state dict; wanted a dictionary of tensors")
  if bad := next((name for name in content if not isinstance(name, str)), None):
    raise WeightsError(f"{path}: holds no state dict: the key {bad!r} is not a name")
  return {name: _array(value) for name, value in content.items()}


def _array(tensor: Any) -> np.ndarray:
  """Converts a PyTorch tensor to a NumPy array, which has neither bfloat16 nor gradients."""
  tensor = tensor.detach() if hasattr(tensor, "detach") else tensor
  if hasattr(tensor, "is_floating_point") and tensor.is_floating_point():
    tensor = tensor.float()
  return tensor.numpy()


def check_state_dict_path(path: str | os.PathLike) -> None:
  """Raises WeightsError or OSError if `write_state_dict` cannot write to the path."""
  if not Path(path).name.endswith((NPZ, *PYTORCH)):
    raise WeightsError(f"{path}: wanted a name that ends in {NPZ}, for NumPy, or in {', '.join(PYTORCH)}")
  check_output(path)
  if not Path(path).name.endswith(NPZ):
    _torch(path, "writing")


def write_state_dict(path: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
  """Writes an NPZ file, or {"state_dict": ...} with torch.save, by the suffix of the name, atomically."""
  check_state_dict_path(path)
  with whole_file(path) as partial, partial.open("wb") as file:
    if Path(path).name.endswith(NPZ):
      arrays: dict[str, Any] = dict(state_dict)  # NumPy 2 declares bool as the type of every keyword
      np.savez(file, **arrays)
    else:
      torch = _torch(path, "writing")
      torch.save({"state_dict": {name: torch.from_numpy(array) for name, array in state_dict.items()}}, file)


def _torch(path: str | os.PathLike, doing: str) -> ModuleType:
  try:
    return importlib.import_module("torch")
  except ImportError as error:
    raise WeightsError(f"{path}: {doing} it needs PyTorch, which is not installed; wanted pip install torch, or an "
                       "NPZ file") from error


def _one_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
