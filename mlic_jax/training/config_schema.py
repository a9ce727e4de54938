"""Configs: Python files with get_config(), such as configs/nano.py, and the schema of their fields.

FIELDS lists each field once: its allowed values, whether a run can be continued with another value, and which runs need
it. All commands load configs with `load_config`.
"""

import ast
import contextlib
import difflib
import inspect
import re
import runpy
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from mlic_jax import distortions
from mlic_jax.config import CodecConfig
from mlic_jax.data.loader import DOWNSCALE, crop_sizes
from mlic_jax.errors import ConfigError
from mlic_jax.kernels.convolution import HIGH_GRADIENTS
from mlic_jax.model import selection_map
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.model.registry import PartError
from mlic_jax.training import config_registry
from mlic_jax.training.multihost import TIMEOUT_MAX
from mlic_jax.training.optimizer import OPTIMIZERS, SCHEDULES, TRAINED
from mlic_jax.training.profile import steps_of_profile

Check = Callable[[Any], str | None]  # returns None for a valid value, or else the allowed values in words


def at_least(lowest: int) -> Check:
  return lambda value: None if type(value) is int and value >= lowest else f"an integer of at least {lowest}"


def number(lowest: float, highest: float | None = None) -> Check:
  """Allows a number from `lowest` to `highest`, without an upper limit if that is None."""
  wanted = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
  inside = lambda value: value >= lowest and (highest is None or value <= highest)
  return lambda value: None if type(value) in (int, float) and inside(value) else wanted


def one_of(names: Sequence[str]) -> Check:
  return lambda value: None if value in names else f"one of {', '.join(names)}"


def instance_of(kind: type | tuple[type, ...], name: str) -> Check:
  return lambda value: None if isinstance(value, kind) else name


TEXT, FLAG = instance_of(str, "text"), instance_of(bool, "True or False")
NUMBERS = lambda value: None if all(type(each) in (int, float) and each >= 0 for each in value) else "numbers from 0 on"


class Field(NamedTuple):
  """A field of a config."""
  check: Check
  is_free: bool = False  # whether a run may continue with another value, because it does not change the steps
  warning: str = ""      # the effect of another value on the steps of a continued run, if there is one
  needed: Callable[[ml_collections.ConfigDict], bool] = lambda config: True
  needed_for: str = ""   # the runs that need the field, in words, if not all do


DISTRIBUTION = "model.distribution"  # optional; the default is "gaussian"
OPTIONS = "model.options."  # settings of contexts and transforms, each with its default (model/registry.py)
PRECISIONS = ("highest", HIGH_GRADIENTS, "high", "default")  # of kernels.convolution.matmul_precision
ROUNDING = "later steps round differently"
is_single_rate = lambda config: not config.model.get("num_rates", 0)
FIELDS = {
    "model": Field(instance_of(ml_collections.ConfigDict, "the fields of CodecConfig")),
    "seed": Field(at_least(0)),
    "distributed": Field(FLAG, is_free=True),
    "peer_timeout": Field(number(1, TIMEOUT_MAX), is_free=True),
    # Images
    "data_dir": Field(TEXT, is_free=True),
    "tfds_dir": Field(TEXT, is_free=True),
    "eval_dir": Field(TEXT),
    "holdout_every": Field(at_least(0)),
    "crop_size": Field(at_least(1)),
    "crop_schedule": Field(instance_of((tuple, list), "pairs of a step and a crop size"), is_free=True),
    "downscale": Field(one_of(DOWNSCALE)),
    "downscale_probability": Field(number(0, 1)),
    "flip": Field(FLAG),
    "batch_size": Field(at_least(1)),
    "data_threads": Field(at_least(1), is_free=True),
    "data_workers": Field(at_least(0), is_free=True),
    "cache_gigabytes": Field(number(0), is_free=True),
    # Objective
    "distortion": Field(TEXT),
    "lmbda": Field(number(0), needed=is_single_rate, needed_for="single-rate models"),
    "lmbdas": Field(NUMBERS, needed=lambda config: not is_single_rate(config), needed_for="variable-rate models"),
    "rate_weighting": Field(number(0, 1), is_free=True, warning="later steps weight the rate points differently",
                            needed=lambda config: not is_single_rate(config), needed_for="variable-rate models"),
    "partial_probability": Field(number(0, 1)),
    "init_from": Field(TEXT),
    "trained": Field(one_of(TRAINED), needed=lambda config: "selection_widths" in config.model.get("options", {}),
                     needed_for="models with a selection map"),
    "teacher": Field(TEXT),
    "distillation_weight": Field(number(0, 1), needed=lambda config: config.get("teacher"), needed_for="a teacher"),
    # Optimizer. num_steps, decay_start and crop_schedule are free, so that a run can be extended or ended early. It
    # then follows the new schedule.
    "num_steps": Field(at_least(1), is_free=True),
    "optimizer": Field(one_of(OPTIMIZERS)),
    "learning_rate": Field(number(0)),
    "muon_learning_rate": Field(number(0), needed=lambda config: config.get("optimizer") == "muon",
                                needed_for="optimizer='muon'"),
    "warmup_steps": Field(at_least(0)),
    "schedule": Field(one_of(SCHEDULES)),
    "final_learning_rate": Field(number(0), needed=lambda config: config.get("schedule") in ("cosine", "wsd"),
                                 needed_for="schedule='cosine' or 'wsd'"),
    "decay_start": Field(at_least(0), is_free=True, needed=lambda config: config.get("schedule") == "wsd",
                         needed_for="schedule='wsd'"),
    "decay_steps": Field(NUMBERS, needed=lambda config: config.get("schedule") == "step",
                         needed_for="schedule='step'"),
    "decay_factors": Field(NUMBERS, needed=lambda config: config.get("schedule") == "step",
                           needed_for="schedule='step'"),
    "aux_learning_rate": Field(number(0)),
    "grad_clip": Field(number(0)),
    "ema_decay": Field(number(0, 1)),
    "accumulate_steps": Field(at_least(1), is_free=True),
    "bfloat16_transforms": Field(FLAG, is_free=True, warning=ROUNDING),
    "entropy_precision": Field(one_of(PRECISIONS), is_free=True, warning=ROUNDING),
    "remat": Field(FLAG, is_free=True),
    "scan_unroll": Field(at_least(0), is_free=True, needed=lambda config: "scan_unroll" in config),  # default: 0
    # Logs, checkpoints, evaluation
    "log_every": Field(at_least(1), is_free=True),
    "checkpoint_every": Field(at_least(1), is_free=True),
    "keep_checkpoints": Field(at_least(1), is_free=True),
    "eval_every": Field(at_least(1), is_free=True),
    "eval_images": Field(at_least(0)),
    "eval_crop_size": Field(at_least(1)),
    "eval_batch_size": Field(at_least(1), is_free=True),
    "eval_pictures": Field(at_least(0), is_free=True),
    "profile_steps": Field(TEXT, is_free=True),
}


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Calls get_config() of a config file and applies overrides.

  Args:
    name: a file, or the name of a config of this project, such as "nano" (config_registry.py). With ":ARGUMENT" after
      it, get_config(ARGUMENT) is called. A file may import from the current folder.
    overrides: "--config.FIELD=VALUE" each, as on the command line.

  ConfigError in one line if the file does not exist, fails, or returns no config, or if a field does not exist.
  """
  path, argument, imports = _locate(str(name))
  try:
    with imports:
      get_config = runpy.run_path(str(path)).get("get_config")
      if argument and isinstance(get_config, types.FunctionType) and not inspect.signature(get_config).parameters:
        raise ConfigError(f"{path} takes no argument; wanted the name without {f':{argument}'!r}")
      config = get_config and get_config(*([argument] if argument else []))
  except ConfigError:
    raise
  except Exception as error:  # the user's code may raise anything
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ConfigError(f"{name}: {kind}{' '.join(str(error).split())}") from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(f"{name}: wanted a function get_config() that returns a ConfigDict, as in configs/nano.py")
  return _overridden(config, list(overrides))


def _locate(name: str) -> tuple[Path, str, contextlib.AbstractContextManager]:
  """Returns the file of a config, the argument of get_config, and the context for its imports."""
  file, _, argument = name.partition(".py:")
  path = Path(f"{file}.py" if argument else file)
  if path.is_file():
    in_project = path.resolve().is_relative_to(config_registry.FOLDER)
    imports = config_registry.imports_from_project if in_project else config_registry.imports_from_project_last
    return path, argument, imports()
  known, _, argument = name.partition(":")
  if (found := config_registry.path(known)) is not None:
    return found, argument, config_registry.imports_from_project()
  if path.is_dir():  # runpy would run it as a package
    raise ConfigError(f"{name}: is a folder; wanted a config file")
  raise ConfigError(f"{name}: no such config file; wanted a file or one of {', '.join(config_registry.names())}")


def _overridden(config: ml_collections.ConfigDict, overrides: list[str]) -> ml_collections.ConfigDict:
  known, added = list(_names(config)), []
  has_parts = isinstance(config.get("model"), ml_collections.ConfigDict)
  for before, each, after in zip(["", *overrides], overrides, [*overrides[1:], ""]):
    field, is_value = each.removeprefix("--config.").split("=")[0], before.startswith("--") and "=" not in before
    if each.startswith("--config."):
      of_model = has_parts and (field == DISTRIBUTION or re.fullmatch(rf"{OPTIONS}\w+", field))
      if field not in known and (field in FIELDS or of_model):
        _add(config, field, each.partition("=")[2] if "=" in each else after)
        added.append(field)
      elif field not in known:
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown config field {field!r}; the nearest known one is {near!r}")
    elif not is_value:
      raise ConfigError(f"unexpected argument {each!r}; wanted --config.FIELD=VALUE")
  values, argv = flags.FlagValues(), ["", *overrides]
  flag = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except (flags.Error, TypeError, ValueError) as error:
    raise ConfigError(" ".join(str(error).split())) from error
  for field in added:
    if field in FIELDS and not FIELDS[field].needed(flag.value):
      raise ConfigError(f"{field} is only for {FIELDS[field].needed_for}; wanted a config without it")
  return flag.value


def _add(config: ml_collections.ConfigDict, field: str, text: str) -> None:
  """Adds a known field that the config does not set; the type of the field is that of the given value."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = text
  with config.unlocked():
    if field.startswith(OPTIONS):   # check_options refuses options that nothing reads
      config.model.options = {**config.model.get("options", {}), field.removeprefix(OPTIONS): value}
    elif field == DISTRIBUTION:
      config.model.distribution = text
    else:
      config[field] = value


def _names(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _names(value, f"{prefix}{name}.")
    else:
      yield prefix + name


def model_config(config: ml_collections.ConfigDict, name: str | Path = "") -> CodecConfig:
  """Returns the CodecConfig of a config.

  ConfigError in one line, which begins with `name`, if it is not valid or names modules that do not exist."""
  try:
    if "model" not in config:
      raise ValueError("the config lacks the field 'model'")
    codec = CodecConfig.from_dict(config.model.to_dict())
    build(codec)
  except (ValueError, TypeError) as error:
    raise ConfigError(f"{name}: {error}" if name else str(error)) from error
  return codec


def check_fields(config: ml_collections.ConfigDict) -> CodecConfig:
  """Checks all fields and returns the CodecConfig.

  ConfigError in one line for a missing, unknown, invalid or contradictory field."""
  for name in config:
    if name not in FIELDS:
      near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)[0]
      raise ConfigError(f"the config has a field {name!r} that nothing reads; the nearest known one is {near!r}")
  codec = model_config(config)
  for name, field in FIELDS.items():
    if field.needed(config):
      if name not in config:
        why = f" (for {field.needed_for})" if field.needed_for else ""
        raise ConfigError(f"the config lacks the field {name!r}{why}")
      if wanted := field.check(config[name]):
        raise ConfigError(f"{name}={config[name]!r}; wanted {wanted}")
  if codec.num_rates and len(config.lmbdas) != codec.num_rates:
    raise ConfigError(f"{len(config.lmbdas)} values in lmbdas; wanted model.num_rates={codec.num_rates}")
  multiple = side_multiple(codec)
  sizes = crop_sizes(config.crop_size, config.crop_schedule, multiple)
  if config.eval_crop_size % multiple:
    raise ConfigError(f"eval_crop_size={config.eval_crop_size}; wanted a multiple of {multiple} pixels")
  smallest = min(config.eval_crop_size, *(size for _, size in sizes))
  try:
    least = distortions.find(config.distortion).MIN_SIDE
  except PartError as error:
    raise ConfigError(str(error)) from None
  if smallest < least:
    raise ConfigError(f"crop_size={config.crop_size} and eval_crop_size={config.eval_crop_size}; the distortion "
                      f"{config.distortion} needs at least {least} pixels")
  if config.get("trained") == "map" and not selection_map.has_map(codec):
    raise ConfigError("trained='map', but the model has no selection map; wanted selection_widths in its options")
  if config.schedule == "step" and len(config.decay_steps) != len(config.decay_factors):
    raise ConfigError(f"decay_steps={config.decay_steps}, decay_factors={config.decay_factors}; wanted equal lengths")
  if config.schedule == "wsd" and config.decay_start:
    if not config.warmup_steps <= config.decay_start < config.num_steps:
      raise ConfigError(f"decay_start={config.decay_start}; wanted 0, or a step from "
                        f"warmup_steps={config.warmup_steps} on and before num_steps={config.num_steps}")
  steps_of_profile(config.profile_steps)
  return codec
