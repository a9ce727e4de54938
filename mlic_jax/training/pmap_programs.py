"""The programs of a training as the devices run them, and the shapes of what they are called with.

What `loop` and `validation` run, what `mlic-jax estimate` compiles for chips that are not there, and what the
tests lower for every platform are the same functions, from here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry
from mlic_jax.model.mlic import build
from mlic_jax.runtime import tpu_options
from mlic_jax.runtime.executable_cache import kept
from mlic_jax.training import parallel
from mlic_jax.training.checkpoints import config_to_dict, flatten
from mlic_jax.training.metrics_buffer import packed
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.preemption import NOTHING
from mlic_jax.training.preflight import LOCAL_FIELDS
from mlic_jax.training.step import make_eval_step, make_train_step, state_shapes
from mlic_jax.training.warm_start import load_teacher

Program = tuple[Any, tuple]  # a jitted function on all devices, and its arguments as shapes


def build_options(config) -> dict[str, Any]:
  """Returns the options of `build` with which a configuration trains; evaluations and exported models have none."""
  return dict(transform_dtype=jnp.bfloat16 if config.bfloat16_transforms else jnp.float32, remat=config.remat,
              transform_precision=None, entropy_precision=config.entropy_precision, scan_unroll=_scan_unroll(config))


def _scan_unroll(config) -> int:
  """Of older configurations it is a field of the model."""
  return config.model.get("scan_unroll") or config.get("scan_unroll", 0)


def described(config, model, teacher=None) -> str | None:
  """What a step of `config` and `model` is traced from, for programs on disk; None when it is more than that."""
  if teacher is not None or registry.description(model) is None or "." in config.distortion:
    return None
  fields = flatten(config_to_dict(config))
  return repr((sorted((name, value) for name, value in fields.items() if name not in LOCAL_FIELDS), model))


def training(train_step: Callable, devices: Sequence[jax.Device] | None = None,
             described: str | None = None) -> Callable:
  """step(state, batch, teacher_variables, flags) -> (state, metrics as of metric_rows.packed, flags), on all devices;
  the new state takes the memory of the old one. Where it is `described`, the program is kept on disk."""
  return kept(packed(train_step), f"{__name__}.training", described, parallel.pmap_over_batch, donate_state=True,
              in_axes=(0, 0, 0, None), devices=devices, compiler_options=_options_of_batch(devices))


def evaluation(eval_step: Callable, devices: Sequence[jax.Device] | None = None,
               described: str | None = None) -> Callable:
  """The evaluation step of make_eval_step, on all devices."""
  return kept(eval_step, f"{__name__}.evaluation", described, parallel.pmap_over_batch,
              in_axes=(0, 0, 0, None, None, None), devices=devices, compiler_options=_options_of_batch(devices))


def _options_of_batch(devices: Sequence[jax.Device] | None) -> Callable[..., dict] | None:
  """The compiler options for arguments of which the second is a batch, (devices, images of each, ...); None where the
  platform has none."""
  device = devices[0] if devices else jax.local_devices()[0]
  if device.platform != "tpu":
    return None
  return lambda state, batch, *others: tpu_options.options_for(batch.shape[1], device)


def training_program(config, codec: CodecConfig, devices: Sequence[jax.Device] | None = None) -> Program:
  """What a training of `config` does in a step, for batches of config.batch_size crops of config.crop_size. Without
  devices it is for as many as there are here, and for every platform."""
  model, optimizer = build(codec, **build_options(config)), make_optimizer(config)
  teacher, teacher_variables = load_teacher(config, codec)
  platform = devices[0].platform if devices else None
  step = training(make_train_step(config, model, optimizer, teacher, platform), devices)
  count = _count(devices)
  parallel.check_batch_size("batch_size", config.batch_size, config.accumulate_steps, count)
  x = _pictures(config.batch_size // count, config.crop_size)
  return step, (*_on_each(count, state_shapes(config, model, optimizer), x, teacher_variables), NOTHING)


def evaluation_program(config, codec: CodecConfig, devices: Sequence[jax.Device] | None = None) -> Program:
  """What an evaluation of a training does with config.eval_batch_size pictures of config.eval_crop_size."""
  model, count = build(codec), _count(devices)
  parallel.check_batch_size("eval_batch_size", config.eval_batch_size, num_devices=count)
  params = state_shapes(config, model, make_optimizer(config)).params
  batch_size, number = config.eval_batch_size // count, jax.ShapeDtypeStruct((), np.float32)
  arrays = params, _pictures(batch_size, config.eval_crop_size), jax.ShapeDtypeStruct((batch_size,), np.float32)
  quality = number if codec.num_rates else None
  return evaluation(make_eval_step(config, model), devices), (*_on_each(count, *arrays), quality, number, NOTHING)


def _pictures(count: int, side: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((count, side, side, 3), np.uint8)


def _count(devices: Sequence[jax.Device] | None) -> int:
  return jax.device_count() if devices is None else len(devices)


def _on_each(count: int, *trees: Any) -> tuple[Any, ...]:
  """Shapes with the leading axis of the devices."""
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), trees)
