"""Trains a codec, or continues an interrupted run.

    python train.py --config configs/nano.py --workdir DIR --config.data_dir=FOLDER [--config.field=value ...]
    python train.py --config configs/mlic_plus_plus.py:ms_ssim:5 ...      the rest of a name goes to get_config

Exit status: 0 done, 1 the loss became non-finite or the end could not be saved, 2 bad configuration or data, 130 and
143 stopped by SIGINT and SIGTERM with the state saved.
This file holds the flags; the program is mlic_jax/training/loop.py."""

import difflib
import inspect
import os
import runpy
import sys

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config(), such as configs/nano.py; "
                                           "what follows a colon is its argument, as in configs/mlic.py:mse:3.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and the model go.")


def main(argv: list[str]) -> int:
  """Runs the command line `argv`; returns the exit status."""
  try:
    parse(argv)
  except ValueError as error:
    return fail(str(error))
  from mlic_jax.errors import for_the_user
  from mlic_jax.training.loop import Interrupted, NonFiniteLoss, SaveError, train_and_evaluate  # slow
  try:
    train_and_evaluate(CONFIG.value, WORKDIR.value)
  except (NonFiniteLoss, SaveError) as error:
    return fail(str(error), status=1)
  except Interrupted as stop:
    return fail(str(stop), status=128 + stop.signum)
  except (OSError, ValueError) as error:
    line = for_the_user(error)
    if line is None:
      raise
    return fail(line)
  return 0


def parse(argv: list[str]) -> None:
  """Reads the flags; ValueError in one line for what is wrong with them."""
  try:
    rest = flags.FLAGS(argv)[1:]
  except (flags.Error, AttributeError, KeyError, OSError) as error:
    raise ValueError(unknown_field(argv) or str(error)) from error
  if rest:
    raise ValueError(f"unexpected argument {rest[0]!r}; wanted --config FILE --workdir DIR [--config.field=value ...]")
  for flag in (CONFIG, WORKDIR):
    if flag.value is None:
      raise ValueError(f"--{flag.name} is missing; wanted --config FILE --workdir DIR [--config.field=value ...]")
  # A missing file would be a traceback later.
  file_and_argument(config_flags.get_config_filename(flags.FLAGS["config"]))


def unknown_field(argv: list[str]) -> str | None:
  """The first --config.field that the config file does not have, with the nearest one that it has.

  ValueError in one line when there is no such file, or when it refuses its argument."""
  config_file = next((after for before, after in zip(argv, argv[1:]) if before == "--config"),
                     next((arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")), None))
  known = []
  for name, value in read_config(config_file).items():
    known += [f"{name}.{inner}" for inner in value] if hasattr(value, "items") else [name]
  for arg in argv:
    name = arg.removeprefix("--config.").split("=")[0]
    if arg.startswith("--config.") and name not in known:
      near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
      return f"unknown configuration field {name!r}; the nearest known one is {near!r}"
  return None


def file_and_argument(name: str | None) -> list[str]:
  """[file] or [file, argument] of a --config; ValueError when there is no such file."""
  path, *argument = (name or "").split(":", 1)
  if not os.path.isfile(path):
    raise ValueError(f"--config={name}: no such configuration file")
  return [path, *argument]


def read_config(name: str | None):
  """What get_config() of a --config returns; ValueError in one line when that does not work."""
  path, *argument = file_and_argument(name)
  get_config = runpy.run_path(path)["get_config"]
  if argument and not inspect.signature(get_config).parameters:
    raise ValueError(f"--config={name}: {path} takes no argument, {argument[0]!r} came")
  return get_config(*argument)


def fail(message: str, status: int = 2) -> int:
  """One line on stderr."""
  print("train.py:", " ".join(message.split()), file=sys.stderr)
  return status
