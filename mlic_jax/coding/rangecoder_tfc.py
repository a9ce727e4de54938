"""The range coder of TensorFlow Compression, through its ops. No other file imports TensorFlow.

Writer and Reader have the interface of rangecoder_numba.py and write the same bytes.
"""
import contextlib
import os

import numpy as np


class Writer:
  """Appends symbols to one stream."""

  def __init__(self, lookup: np.ndarray, starts: np.ndarray):
    del starts  # the ops find the rows themselves
    self._handle = _OPS.create_range_encoder([], lookup)

  def push(self, rows: np.ndarray, cells: np.ndarray) -> None:
    self._handle = _OPS.entropy_encode_index(self._handle, rows, cells)

  def finish(self) -> bytes:
    return _OPS.entropy_encode_finalize(self._handle).numpy()


class Reader:
  """Reads symbols from one stream."""

  def __init__(self, stream: bytes, lookup: np.ndarray, starts: np.ndarray):
    del starts
    self._handle = _OPS.create_range_decoder(stream, lookup)

  def pull(self, rows: np.ndarray) -> np.ndarray:
    self._handle, cells = _OPS.entropy_decode_index(self._handle, rows, rows.shape, Tdecoded=np.int32)
    return cells.numpy()

  def finish(self) -> bool:
    return bool(_OPS.entropy_decode_finalize(self._handle).numpy())


@contextlib.contextmanager
def _environment(variables: dict[str, str]):
  """Sets environment variables temporarily. tf.keras reads them again when it is first used."""
  before = {name: os.environ.get(name) for name in variables}
  os.environ.update(variables)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value


def _import_ops():
  """Imports the ops, which takes seconds, and hides accelerators from TensorFlow, which would reserve their memory."""
  quiet = {"TF_USE_LEGACY_KERAS": "1"}  # avoids importing Keras, a quarter of the time: legacy Keras is not installed
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # jax sets 1, but TensorFlow still logs four lines
    quiet["TF_CPP_MIN_LOG_LEVEL"] = "3"
  with _environment(quiet):
    import tensorflow as tf
    tf.config.set_visible_devices([], "GPU")
    import tensorflow_compression_ops
  return tensorflow_compression_ops


_OPS = _import_ops()
