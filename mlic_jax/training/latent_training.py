"""Training of entropy models on the latents of a frozen codec, for ablations.

A checkpoint analyzes crops once, and caches y without gain and the symbols of z at each rate point in memory. A step
draws crops and rate points from the cache, computes the hyper features, and trains only the parameters of the slices,
by the bits of y. It reads no images and takes no gradients through transforms and hyperprior.

    WORKDIR/config.json    the config of the run
    WORKDIR/metrics.csv    bits and speed, as in runs of whole codecs
    WORKDIR/latents.json   {"step", "eval"}, written at the end; the rows of the table use it
"""

import csv
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlic_jax.atomic_io import write_whole
from mlic_jax.coding.checkpoint_io import Model, load_model
from mlic_jax.config import CodecConfig
from mlic_jax.console import say
from mlic_jax.data import loader as data
from mlic_jax.data.holdout import split
from mlic_jax.errors import ConfigError
from mlic_jax.model import entropy_model
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.model.registry import custom_modules
from mlic_jax.model.slice_groups import choose_groups
from mlic_jax.training import preflight, warm_start
from mlic_jax.training.checkpoints import write_config
from mlic_jax.training.metrics_buffer import NonFiniteLoss
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import rate_weights

RESULTS = "latents.json"
NUM_CROPS = 1024       # number of crops of the training images, drawn as for whole codecs
ANALYZED = 8           # batch size of the analysis


class Latents(NamedTuple):
  """The latents of crops."""
  y: np.ndarray         # (n, h, w, M) float32, without gain
  z: np.ndarray         # (rates, n, h/4, w/4, N) int32 symbols
  z_bpp: np.ndarray     # (rates,) bits of z per pixel, mean over the crops
  pixels: int           # pixels per crop


class Cache(NamedTuple):
  """The latents that all configs of an ablation are trained and evaluated on."""
  model: Model
  gains: np.ndarray     # (rates, M)
  train: Latents
  held_out: Latents


def cache_latents(model: Model, config: Any) -> Cache:
  """Analyzes crops of the data of a training config, drawn as in its training and evaluation."""
  sizes = data.crop_sizes(config.crop_size, (), side_multiple(model.config))
  sources, others = split(config.data_dir, config.eval_dir, config.holdout_every, config.tfds_dir)
  batches = data.training_batches(
      data.Mixture(sources, sizes), seed=config.seed, batch_size=ANALYZED, sizes=sizes,
      downscale_probability=config.downscale_probability, downscale=config.downscale, flip=config.flip,
      threads=config.data_threads)
  try:
    train = _analyze(model, (next(batches) for _ in range(-(-NUM_CROPS // ANALYZED))))
  finally:
    batches.close()
  held_out = data.eval_images(others, config.eval_crop_size, config.eval_images)
  rates = model.config.num_rates
  gains = np.exp(model.variables["params"]["log_gain"]) if rates else np.ones((1, model.config.M), np.float32)
  parts = np.array_split(held_out, -(-len(held_out) // ANALYZED))
  return Cache(model, np.asarray(gains, np.float32), train, _analyze(model, iter(parts)))


def check_fits(config: CodecConfig, model: Model) -> None:
  """Raises ConfigError unless the entropy model of a config fits the latents of a model."""
  for field in ("M", "num_rates"):
    if getattr(config, field) != getattr(model.config, field):
      raise ConfigError(f"{field}={getattr(config, field)}; the latents of {model.name} have "
                        f"{field}={getattr(model.config, field)}")


def train(config: Any, codec: CodecConfig, cache: Cache, workdir: Path) -> None:
  """Trains the entropy model of a config for config.num_steps and writes its results to `workdir`.

  NonFiniteLoss if it diverges."""
  workdir.mkdir(parents=True, exist_ok=True)
  write_config(config, workdir / "config.json", preflight.environment())
  optimizer, key = make_optimizer(config), jax.random.PRNGKey(config.seed)
  params = {"slices": jax.jit(partial(entropy_model.init, codec))(key)}
  if config.init_from:
    params = warm_start.copy_matching(params, load_model(config.init_from, custom_modules(codec)).variables["params"])
  state = params, optimizer.init(params)
  y, z, gains = (jnp.asarray(each) for each in (cache.train.y, cache.train.z, cache.gains))
  lmbdas = jnp.asarray(config.lmbdas if codec.num_rates else [config.lmbda], jnp.float32)
  variables = jax.device_put(cache.model.variables)
  scan_groups = choose_groups(jax.default_backend(), codec.num_slices)  # for one platform, so one scan is traced

  @partial(jax.jit, donate_argnums=0)
  def train_step(state, step, variables, y, z):
    draw, noise = jax.random.split(jax.random.fold_in(key, step))
    crop, rate = (jax.random.randint(each, (config.batch_size,), 0, most)
                  for each, most in zip(jax.random.split(draw), (len(y), len(lmbdas))))
    weights = jnp.ones(config.batch_size)
    if codec.num_rates and config.rate_weighting:
      weights = rate_weights(lmbdas[rate], tuple(config.lmbdas), config.rate_weighting)
    latents, hyper = y[crop] * gains[rate][:, None, None], _hyper(cache.model.config, variables, z[rate, crop])

    def loss(params):
      bits = entropy_model.predict(codec, params["slices"], hyper, latents, noise, scan_groups=scan_groups,
                                   precision=config.entropy_precision).bits
      bpp = bits.sum((1, 2, 3)) / cache.train.pixels
      return (weights * bpp).mean(), bpp.mean()

    (_, bpp), gradient = jax.value_and_grad(loss, has_aux=True)(state[0])
    updates, moments = optimizer.update(gradient, state[1], state[0])
    return (optax.apply_updates(state[0], updates), moments), bpp

  rows: list[list[float | str]] = []
  started, last = None, 0
  for step in range(1, config.num_steps + 1):
    state, bpp = train_step(state, step - 1, variables, y, z)
    if step % config.log_every == 0 or step in (1, config.num_steps):
      if not np.isfinite(bpp):
        raise NonFiniteLoss(f"{workdir}: the bits are not finite at step {step}")
      now = time.perf_counter()
      speed: float | str = "" if started is None else config.batch_size * (step - last) / (now - started)
      rows.append([step, float(bpp), speed])
      started, last = now, step        # excludes the first step, which compiles
  with (workdir / "metrics.csv").open("w", newline="") as file:
    csv.writer(file, lineterminator="\n").writerows([["step", "bpp_y", "images_per_second"], *rows])
  rates = _evaluate(config, codec, cache, state[0]["slices"])
  say(f"step {config.num_steps}: {np.mean([rate['bpp'] for rate in rates]):.4f} bpp"
      + (f", {rows[-1][2]:.1f} images/s" if rows[-1][2] else ""))
  write_whole(workdir / RESULTS, json.dumps({"step": config.num_steps, "eval": rates}, indent=2) + "\n")


def _evaluate(config: Any, codec: CodecConfig, cache: Cache, params: Any) -> list[dict[str, Any]]:
  """Returns the results on the held-out crops for each rate point: bpp, its parts y and z, and loss = bpp."""
  held_out, lmbdas = cache.held_out, config.lmbdas if codec.num_rates else [config.lmbda]

  rates = []
  for rate, lmbda in enumerate(lmbdas):
    each = [_bits(codec, cache.model.config, params, cache.model.variables, held_out.y[i:i + 1] * cache.gains[rate],
                  held_out.z[rate, i:i + 1]) for i in range(len(held_out.y))]
    bpp_y, bpp_z = float(np.mean(each)) / held_out.pixels, float(held_out.z_bpp[rate])
    rates.append(dict(quality=rate + 1 if codec.num_rates else None, lmbda=float(lmbda), bpp=bpp_y + bpp_z,
                      bpp_y=bpp_y, bpp_z=bpp_z, psnr=None, loss=bpp_y + bpp_z))
  return rates


@partial(jax.jit, static_argnums=(0, 1))
def _bits(codec: CodecConfig, analysis: CodecConfig, params: Any, variables: Any, y: jax.Array, z: jax.Array):
  """Returns the bits (B,) of y by the entropy model of `codec`; z has the symbols of the model of `analysis`."""
  return entropy_model.predict(codec, params, _hyper(analysis, variables, z), y).bits.sum((1, 2, 3))


def _hyper(config: CodecConfig, variables: dict[str, Any], z_symbols: jax.Array) -> jax.Array:
  hyper: Any = build(config).apply(variables, z_symbols, method="hyper")
  return jax.lax.stop_gradient(hyper)


def _analyze(model: Model, batches: Iterator[np.ndarray]) -> Latents:
  """Returns the latents of batches of crops (b, H, W, 3) uint8."""
  found, pixels, count = [], 0, 0
  for x in batches:
    pixels, count = x.shape[1] * x.shape[2], count + len(x)
    found.append(jax.device_get(_latents(model.config, model.variables, x)))
  y, z, bits = zip(*found)
  return Latents(np.concatenate(y), np.concatenate(z, axis=1), np.sum(bits, axis=0) / (count * pixels), pixels)


@partial(jax.jit, static_argnums=0)
def _latents(config: CodecConfig, variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns y without gain, and symbols of z and the sum of their bits for each rate point."""
  run: Callable[..., Any] = partial(build(config).apply, variables)
  image, found = x.astype(jnp.float32) / 255, []
  for quality in range(1, config.num_rates + 1) if config.num_rates else [None]:
    y, z = run(image, quality, method="analyze")
    symbols = run(z, method="round_z")
    found.append((y, symbols, run(symbols, method="z_bits").sum()))
  ys, symbols, bits = zip(*found)
  gain = jnp.exp(variables["params"]["log_gain"][-1]) if config.num_rates else 1.0
  return ys[-1] / gain, jnp.stack(symbols), jnp.stack(bits)
