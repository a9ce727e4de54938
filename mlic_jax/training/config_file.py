"""Configuration files: Python files with get_config(), such as configs/nano.py."""

import runpy
from pathlib import Path

import ml_collections

from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.model.contexts import make_context


def load_config(file: str | Path) -> ml_collections.ConfigDict:
  """What get_config() of the file returns, or get_config(ARGUMENT) for "FILE.py:ARGUMENT".

  The file may import from the folder that the program was started in. OSError when it cannot be read; ConfigError in
  one line when it does not run or gives no configuration.
  """
  path, _, argument = str(file).partition(".py:")
  path = f"{path}.py" if argument else path
  with open(path, "rb"):  # runpy takes a folder for a package
    pass
  try:
    get_config = runpy.run_path(path).get("get_config")
    config = get_config and get_config(*([argument] if argument else []))
  except Exception as error:  # the file is code of the user's
    raise ConfigError(f"{file}: {type(error).__name__}: {' '.join(str(error).split())}") from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(f"{file}: wanted a function get_config() that returns a ConfigDict, as in configs/nano.py")
  return config


def model_config(config: ml_collections.ConfigDict, name: str | Path) -> CodecConfig:
  """The codec that a configuration describes; ConfigError in one line, beginning with `name`."""
  if "model" not in config:
    raise ConfigError(f"{name}: the configuration lacks the field 'model'")
  try:
    codec = CodecConfig.from_dict(config.model.to_dict())
    for context in codec.contexts:
      make_context(context, codec)
  except (ValueError, TypeError) as error:
    raise ConfigError(f"{name}: {error}") from error
  return codec
