"""What a training takes from other checkpoints: parameters to start from, and a teacher."""

import jax

from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.config import CodecConfig
from mlic_jax.errors import ConfigError
from mlic_jax.model import selection_map
from mlic_jax.model.mlic import MLIC, build
from mlic_jax.model.registry import custom_modules
from mlic_jax.training.step import TrainState


def start_from(checkpoint: str, state: TrainState, model: CodecConfig) -> TrainState:
  """`state` with the parameters of a model directory, such as one of another lambda; the optimizer starts afresh.

  A model without a map of coded elements begins one. ConfigError for parameters of another architecture. The directory
  may name the custom modules of `model`, the config of the run, and no others."""
  params = with_map(load_model(checkpoint, custom_modules(model)).variables["params"], state.params)
  named = lambda tree: {jax.tree_util.keystr(path): leaf.shape for path, leaf in
                        jax.tree_util.tree_leaves_with_path(tree)}
  came, wanted = named(params), named(state.params)
  for name in sorted(came.keys() | wanted.keys()):
    if came.get(name) != wanted.get(name):
      raise ConfigError(f"init_from={checkpoint}: parameter {name} has shape {came.get(name, 'none')}; "
                        f"the configuration wants {wanted.get(name, 'none')}")
  copy = lambda: jax.tree.map(jax.numpy.array, params)
  return state.replace(params=copy(), ema_params=None if state.ema_params is None else copy())


def with_map(params: dict, fresh: dict) -> dict:
  """`params`, with the maps of `fresh` in slices that have none (model/selection_map.py)."""
  steps = {name: of_part for name, of_part in fresh["slices"]["steps"].items() if name.startswith(selection_map.PREFIX)}
  return params | {"slices": {"steps": steps | params["slices"]["steps"]}}


def load_teacher(config, student: CodecConfig) -> tuple[MLIC | None, dict | None]:
  """The codec whose reconstructions are distilled, and its variables; (None, None) without one.

  ConfigError when its qualities are not those of the student. It may have custom modules of the student, and no
  others."""
  if not config.teacher:
    return None, None
  model = load_model(config.teacher, custom_modules(student))
  if model.config.num_rates not in (0, student.num_rates):
    raise ConfigError(f"teacher={config.teacher}: a codec of {model.config.num_rates} rates; wanted one of a single "
                      f"rate{f' or of {student.num_rates}' * bool(student.num_rates)}")
  return build(model.config), model.variables
