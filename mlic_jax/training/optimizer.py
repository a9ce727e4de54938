"""Optimizers (Adam, or Muon or SOAP for convolutions), learning rate schedules, and the Adam of the quantiles of z."""

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
TRAINED = ("all", "map")  # which parameters are trained


def learning_rate_schedule(config, peak: float | None = None) -> optax.Schedule:
  """Returns the learning rate schedule of a config: linear warm-up over warmup_steps, then "cosine", "wsd" or "step".

  "cosine" decays to final_learning_rate at num_steps. "wsd" (warm-up, stable, decay; Hu et al., MiniCPM, 2024) is
  constant until decay_start (0: always) and then decays linearly to final_learning_rate at num_steps, so a run can be
  extended and end at any step. "step" multiplies by decay_factors[i] at step decay_steps[i]. `peak` replaces
  learning_rate and scales the whole schedule."""
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
  """Whether a parameter has the quantiles of z, which only the auxiliary loss trains."""
  return getattr(path[-1], "key", None) == "quantiles"


def is_frozen(config, path: tuple, _=None) -> bool:
  """Whether the config freezes a parameter: with trained="map", all but those of the selection map."""
  return config.get("trained", "all") == "map" and not selection_map.is_map_parameter(path)


def is_kernel(path: tuple, p: Any) -> bool:
  """Whether Muon and SOAP update a parameter: the kernel of a convolution, (..., size, size, inputs, outputs).

  Depthwise kernels are excluded."""
  return getattr(path[-1], "key", None) == "kernel" and p.ndim >= 4 and p.shape[-2] > 1


def make_optimizer(config, platform: str | None = None) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer of a config, which clips the gradient to the global norm grad_clip (0: no clipping).

  "adam": Adam with learning_rate. "muon": Muon (Jordan et al., 2024) with muon_learning_rate for kernels of
  convolutions, and NAdam with learning_rate for other parameters. "soap": SOAP for kernels and Adam for other
  parameters, with learning_rate. Optimizers that whiten the gradient resolve the conflict between rate and distortion,
  which slows Adam down in learned codecs (Zhang and Zhu, arXiv:2601.20769, with SOAP). The quantiles of z have an Adam
  with aux_learning_rate. On the platform "gpu" Muon has fewer kernels; the state is the same on all platforms."""
  rate = learning_rate_schedule(config)
  if config.optimizer == "adam":
    step = optax.adam(rate)
  elif config.optimizer == "muon":
    muon = scale_by_muon(platform=platform)
    step = _with_kernels(muon, learning_rate_schedule(config, config.muon_learning_rate), optax.nadam(rate))
  else:
    step = _with_kernels(scale_by_soap(), rate, optax.adam(rate))
  clip = clip_by_norm(config.grad_clip) if config.grad_clip else optax.identity()
  aux = optax.adam(config.aux_learning_rate)

  def label(path, _):
    return "frozen" if is_frozen(config, path) else "aux" if is_quantiles(path) else "main"

  labels = functools.partial(jax.tree_util.tree_map_with_path, label)
  transforms = dict(main=optax.chain(clip, step), aux=aux)
  if config.get("trained", "all") == "map":  # only then, because each transform adds an entry to checkpoints
    transforms["frozen"] = optax.set_to_zero()
  return optax.multi_transform(transforms, labels)


def _with_kernels(scale: optax.GradientTransformation, rate: optax.Schedule,
                  others: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns `scale` with learning rate `rate` for kernels of convolutions, and `others` for other parameters."""
  kind = lambda params: jax.tree_util.tree_map_with_path(
      lambda path, p: "kernels" if is_kernel(path, p) else "others", params)
  of_kernels = optax.chain(scale, optax.scale_by_learning_rate(rate))
  return optax.multi_transform(dict(kernels=of_kernels, others=others), kind)
