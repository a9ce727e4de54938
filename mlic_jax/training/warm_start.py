"""Initial parameters and teachers from other checkpoints."""

import jax

from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.model import distributions, registry, selection_map
from mlic_jax.model.mlic import MLIC, build
from mlic_jax.model.registry import custom_modules
from mlic_jax.training.step import TrainState


def start_from(checkpoint: str, state: TrainState, model: CodecConfig) -> TrainState:
  """Returns `state` with the parameters of a model directory, for example of another lambda; the optimizer is new.

  If the model directory has no selection map, that of `state` stays, and likewise the parameters of channels of another
  distribution. The directory may name the custom modules of `model`, the config of the run, and no others. ConfigError
  for parameters of another architecture."""
  found = load_model(checkpoint, custom_modules(model))
  params = with_map(found.variables["params"], state.params)
  if _distribution(found.config) != _distribution(model):
    params = with_distribution(params, state.params)
  shapes = lambda tree: {jax.tree_util.keystr(path): leaf.shape for path, leaf in
                         jax.tree_util.tree_leaves_with_path(tree)}
  given, wanted = shapes(params), shapes(state.params)
  for name in sorted(given.keys() | wanted.keys()):
    if given.get(name) != wanted.get(name):
      raise ConfigError(f"init_from={checkpoint}: parameter {name} has shape {given.get(name, 'none')}; "
                        f"wanted {wanted.get(name, 'none')} for this config")
  copy = lambda: jax.tree.map(jax.numpy.array, params)
  return state.replace(params=copy(), ema_params=None if state.ema_params is None else copy())


def copy_matching(params: dict, others: dict) -> dict:
  """Returns `params` with the values of `others` where paths and shapes agree, for comparisons of architectures.

  A last axis may be longer than that of `others`: its first values are copied. So an entropy network with more outputs
  predicts the same scales and means as before, and its other outputs are new."""
  found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(others)}

  def copied(path, leaf):
    other = found.get(jax.tree_util.keystr(path))
    if other is None or leaf.shape[:-1] != other.shape[:-1] or leaf.shape[-1:] < other.shape[-1:]:
      return leaf
    return leaf.at[..., :other.shape[-1]].set(other) if leaf.ndim else other

  return jax.tree_util.tree_map_with_path(copied, params)


def with_map(params: dict, initial: dict) -> dict:
  """Adds the selection map of `initial` to `params` unless they have one (model/selection_map.py)."""
  steps = {name: value for name, value in initial["slices"]["steps"].items() if name.startswith(selection_map.PREFIX)}
  return params | {"slices": {"steps": steps | params["slices"]["steps"]}}


def with_distribution(params: dict, initial: dict) -> dict:
  """Replaces the parameters of the distribution of y by those of `initial`, or removes them if it has none."""
  name = "distribution_parameters"   # the submodule of model/slices.py
  steps = {key: value for key, value in params["slices"]["steps"].items() if key != name}
  own = {key: value for key, value in initial["slices"]["steps"].items() if key == name}
  return params | {"slices": {"steps": steps | own}}


def _distribution(config: CodecConfig) -> tuple[str, dict]:
  """Returns what the parameters of a distribution depend on: its name and its options."""
  return config.distribution, registry.options(config, distributions.find(config.distribution))


def load_teacher(config, student: CodecConfig) -> tuple[MLIC | None, dict | None]:
  """Returns the teacher of a config, for distillation, and its variables; (None, None) without a teacher.

  It may have custom modules of the student and no others. ConfigError if its qualities are not those of the student."""
  if not config.teacher:
    return None, None
  model = load_model(config.teacher, custom_modules(student))
  if model.config.num_rates not in (0, student.num_rates):
    raise ConfigError(f"teacher={config.teacher} has {model.config.num_rates} rates; wanted a single rate"
                      f"{f' or {student.num_rates}' * bool(student.num_rates)}")
  return build(model.config), model.variables
