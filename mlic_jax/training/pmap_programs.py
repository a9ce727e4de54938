"""The pmapped programs of a training, and the shapes of their arguments.

`loop` and `validation` run these programs, `mlic-jax estimate` compiles them for other devices, and the tests lower
them for every platform.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry
from mlic_jax.model.mlic import build
from mlic_jax.runtime import tpu_options
from mlic_jax.runtime.executable_cache import with_executable_cache
from mlic_jax.runtime.program_chain import chain
from mlic_jax.training import parallel
from mlic_jax.training.checkpoints import config_to_dict, flatten
from mlic_jax.training.metrics_buffer import pack_metrics
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.preemption import NO_SIGNALS
from mlic_jax.training.preflight import LOCAL_FIELDS
from mlic_jax.training.step import (
  OPTIMIZATION_LEVEL,
  level_is_chosen,
  make_eval_step,
  make_train_step,
  state_shapes,
)
from mlic_jax.training.warm_start import load_teacher

# LLVM takes half of the time of compiling a step on CPU. Convolutions and products are calls of a library, so fewer of
# LLVM's optimizations leave steps as fast (docs/benchmarks/startup.md).
CPU_OPTIONS = {OPTIMIZATION_LEVEL: 1}

Program = tuple[Any, tuple]  # a jitted function on all devices, and its arguments as shapes


def build_options(config) -> dict[str, Any]:
  """Returns the options of `build` for the training of a config; evaluations and exported models use the defaults."""
  return dict(transform_dtype=jnp.bfloat16 if config.bfloat16_transforms else jnp.float32, remat=config.remat,
              transform_precision=None, entropy_precision=config.entropy_precision, scan_unroll=_scan_unroll(config))


def _scan_unroll(config) -> int:
  """Returns scan_unroll, which is a field of the model in older configs."""
  return config.model.get("scan_unroll") or config.get("scan_unroll", 0)


def cache_key(config, model, teacher=None) -> str | None:
  """Returns a key for cached programs: everything that a step is traced from. None if it cannot be cached.

  Steps with a teacher, custom modules or a custom distortion are not cached (runtime/executable_cache.py)."""
  if teacher is not None or registry.description(model) is None or "." in config.distortion:
    return None
  fields = flatten(config_to_dict(config))
  return repr((sorted((name, value) for name, value in fields.items() if name not in LOCAL_FIELDS), model))


def evaluation_key(config, model) -> str | None:
  """Returns the key of the cached evaluation, which reads only the distortion from a config; None as in cache_key.

  A run that continues with more steps or another learning rate thus finds it."""
  return None if cache_key(config, model) is None else repr((config.distortion, model))


def has_own_programs(devices: Sequence[jax.Device] | None = None) -> bool:
  """Returns whether the training step is a chain of programs: on one CPU device, in a run of one process.

  Programs compile in parallel (docs/benchmarks/startup.md). A program of several devices is one of jax.pmap."""
  devices = jax.devices() if devices is None else devices
  return len(devices) == 1 and devices[0].platform == "cpu"


def training(train_step: Callable, devices: Sequence[jax.Device] | None = None,
             key: str | None = None, own_programs: bool = False) -> Callable:
  """Returns the training step on all devices: (state, batch, teacher_variables, flags) -> (state, metrics, flags).

  The metrics are packed (metrics_buffer.py), and the new state reuses the memory of the old one. With a `key` the
  program is cached on disk. `own_programs` is that of make_train_step."""
  options: dict[str, Any] = dict(donate_state=True, in_axes=(0, 0, 0, None), compiler_options=_batch_options(devices))
  jit = functools.partial(chain, axis_name=parallel.AXIS) if own_programs else parallel.pmap_over_batch
  if not own_programs:
    options["devices"] = devices
  return with_executable_cache(pack_metrics(train_step), f"{__name__}.training", key, jit, **options)


def evaluation(eval_step: Callable, devices: Sequence[jax.Device] | None = None,
               key: str | None = None) -> Callable:
  """Returns the evaluation step on all devices. With a `key` the program is cached on disk."""
  return with_executable_cache(
      eval_step, f"{__name__}.evaluation", key, parallel.pmap_over_batch,
      in_axes=(0, 0, 0, None, None, None), devices=devices, compiler_options=_batch_options(devices))


class CompilerOptions(NamedTuple):
  """The compiler options of a step as a function of its arguments. Its repr is part of the key of cached programs."""
  device: jax.Device

  def __call__(self, state: Any, batch: Any, *others: Any) -> dict[str, Any]:
    """Returns the options for a batch (devices, images per device, ...)."""
    if self.device.platform == "cpu":
      return {} if level_is_chosen() else dict(CPU_OPTIONS)
    return tpu_options.options_for(batch.shape[1], self.device)


def _batch_options(devices: Sequence[jax.Device] | None) -> CompilerOptions | None:
  """Returns the compiler options as a function of the arguments; None if the platform has none."""
  device = devices[0] if devices else jax.local_devices()[0]
  return CompilerOptions(device) if device.platform in ("cpu", "tpu") else None


def training_program(config, codec: CodecConfig, devices: Sequence[jax.Device] | None = None) -> Program:
  """Returns the training step of `config` for batches of config.batch_size crops with config.crop_size pixels a side.

  Without `devices` it is a program for the local number of devices and for every platform."""
  platform = devices[0].platform if devices else None
  model, optimizer = build(codec, **build_options(config)), make_optimizer(config, platform)
  teacher, teacher_variables = load_teacher(config, codec)
  own_programs = devices is not None and has_own_programs(devices)
  step = training(make_train_step(config, model, optimizer, teacher, platform, own_programs), devices,
                  own_programs=own_programs)
  count = _count(devices)
  parallel.check_batch_size("batch_size", config.batch_size, config.accumulate_steps, count)
  x = _image_batch(config.batch_size // count, config.crop_size)
  return step, (*_per_device(count, state_shapes(config, model, optimizer), x, teacher_variables), NO_SIGNALS)


def evaluation_program(config, codec: CodecConfig, devices: Sequence[jax.Device] | None = None) -> Program:
  """Returns the evaluation step of `config` for config.eval_batch_size images with config.eval_crop_size pixels a side.
  """
  model, count = build(codec), _count(devices)
  parallel.check_batch_size("eval_batch_size", config.eval_batch_size, num_devices=count)
  params = state_shapes(config, model, make_optimizer(config)).params
  batch_size, number = config.eval_batch_size // count, jax.ShapeDtypeStruct((), np.float32)
  arrays = params, _image_batch(batch_size, config.eval_crop_size), jax.ShapeDtypeStruct((batch_size,), np.float32)
  quality = number if codec.num_rates else None
  step = make_eval_step(config, model, devices[0].platform if devices else None)
  return evaluation(step, devices), (*_per_device(count, *arrays), quality, number, NO_SIGNALS)


def _image_batch(count: int, side: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((count, side, side, 3), np.uint8)


def _count(devices: Sequence[jax.Device] | None) -> int:
  return jax.device_count() if devices is None else len(devices)


def _per_device(count: int, *trees: Any) -> tuple[Any, ...]:
  """Adds the leading axis of devices to shapes."""
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), trees)
