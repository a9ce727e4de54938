"""Replaces ml_collections for configs/ where it is not installed; import this module before configs."""
import importlib.util
import sys
import types


class Fields(dict):
  """The part of ml_collections.ConfigDict that configs/ and a training step need."""

  __getattr__, __delattr__ = dict.__getitem__, dict.__delitem__

  def __setattr__(self, name, value):
    self[name] = Fields(value) if isinstance(value, dict) else value


if importlib.util.find_spec("ml_collections") is None:
  sys.modules["ml_collections"] = types.ModuleType("ml_collections")
  sys.modules["ml_collections"].ConfigDict = Fields
