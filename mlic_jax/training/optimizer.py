"""The optimizer: Adam, or Muon or SOAP for convolutions; its schedules, and the other Adam of the quantiles of z."""

import functools
from typing import Any

import jax
import optax

from mlic_jax.model import selection_map
from mlic_jax.training.clipping import clip_by_norm
from mlic_jax.training.muon import scale_by_muon
from mlic_jax.training.soap import scale_by_soap

OPTIMIZERS = ("adam", "muon", "soap")
SCHEDULES = ("cosine", "wsd", "step")
TRAINED = ("all", "map")  # parameters that a training changes


def learning_rate_schedule(config, peak: float | None = None) -> optax.Schedule:
  """Linear warm-up over warmup_steps, then "cosine" down to final_learning_rate at num_steps, "wsd", or "step".

  "wsd" stays until decay_start (0: for ever) and goes down to final_learning_rate at num_steps on a straight line:
  warm-up, stable, decay (Hu et al., MiniCPM, 2024). A run can go on for as long as there is time, and end at any step.
  "step" multiplies by decay_factors[i] at step decay_steps[i]. Another `peak` scales the whole schedule, which is
  that of learning_rate."""
  scale = 1.0 if peak is None else peak / config.learning_rate
  peak, warmup = scale * config.learning_rate, config.warmup_steps
  if config.schedule == "cosine":
    decay_steps = max(1, config.num_steps - warmup)
    decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_learning_rate / config.learning_rate)
  elif config.schedule == "wsd":
    decay = optax.constant_schedule(peak)
    if config.decay_start:
      end = optax.linear_schedule(peak, scale * config.final_learning_rate, config.num_steps - config.decay_start)
      decay = optax.join_schedules([decay, end], [config.decay_start - warmup])
  else:
    decay = optax.piecewise_constant_schedule(
        peak, {step - warmup: factor for step, factor in zip(config.decay_steps, config.decay_factors)})
  return optax.join_schedules([optax.linear_schedule(peak / max(1, warmup), peak, warmup), decay], [warmup])


def is_quantiles(path: tuple, _=None) -> bool:
  """Whether a parameter is the quantiles of z's density, which the auxiliary loss alone trains."""
  return getattr(path[-1], "key", None) == "quantiles"


def is_frozen(config, path: tuple, _=None) -> bool:
  """Whether a training of config leaves a parameter as it is: with trained="map", all but those of the map of coded
  elements (model/selection_map.py)."""
  return config.get("trained", "all") == "map" and not selection_map.is_map_parameter(path)


def is_kernel(path: tuple, p: Any) -> bool:
  """Whether a parameter is a matrix to Muon and SOAP: the kernel of a convolution, (..., size, size, inputs, outputs).

  Depthwise kernels are no matrices."""
  return getattr(path[-1], "key", None) == "kernel" and p.ndim >= 4 and p.shape[-2] > 1


def make_optimizer(config) -> optax.GradientTransformationExtraArgs:
  """The optimizer of config on the clipped gradient (global norm grad_clip, 0: not clipped); Adam for the quantiles.

  "adam": learning_rate for everything. "muon": muon_learning_rate for the kernels of convolutions (Jordan et al.,
  2024), Nesterov's form of Adam with learning_rate for the rest. "soap": learning_rate for everything, SOAP for the
  kernels, Adam for the rest. Steps that whiten the gradient settle the conflict between rate and distortion, which
  slows Adam down in learned codecs (Zhang & Zhu, arXiv:2601.20769, with SOAP)."""
  rate = learning_rate_schedule(config)
  if config.optimizer == "adam":
    step = optax.adam(rate)
  elif config.optimizer == "muon":
    step = _with_kernels(scale_by_muon(), learning_rate_schedule(config, config.muon_learning_rate), optax.nadam(rate))
  else:
    step = _with_kernels(scale_by_soap(), rate, optax.adam(rate))
  clip = clip_by_norm(config.grad_clip) if config.grad_clip else optax.identity()
  aux = optax.adam(config.aux_learning_rate)

  def label(path, _):
    return "frozen" if is_frozen(config, path) else "aux" if is_quantiles(path) else "main"

  labels = functools.partial(jax.tree_util.tree_map_with_path, label)
  transforms = dict(main=optax.chain(clip, step), aux=aux)
  if config.get("trained", "all") == "map":  # only then, as every transform has a place in the state of a checkpoint
    transforms["frozen"] = optax.set_to_zero()
  return optax.multi_transform(transforms, labels)


def _with_kernels(scale: optax.GradientTransformation, rate: optax.Schedule,
                  others: optax.GradientTransformation) -> optax.GradientTransformation:
  """`scale` at `rate` for the kernels of convolutions, `others` for all else."""
  kind = lambda params: jax.tree_util.tree_map_with_path(
      lambda path, p: "kernels" if is_kernel(path, p) else "others", params)
  of_kernels = optax.chain(scale, optax.scale_by_learning_rate(rate))
  return optax.multi_transform(dict(kernels=of_kernels, others=others), kind)
