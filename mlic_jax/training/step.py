"""One training step and one evaluation step, as pure functions of (state, batch)."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mlic_jax.training.losses import rd_loss
from mlic_jax.training.optimizer import is_quantiles, learning_rate_schedule
from mlic_jax.training.parallel import AXIS

# For what runs once: optimising the random numbers of all initialisers takes four times as long as drawing them.
COMPILE_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@flax.struct.dataclass
class TrainState:
  """Everything a step reads and changes."""
  step: jax.Array         # () int32, steps taken
  params: Any
  opt_state: optax.OptState
  ema_params: Any         # exponential moving average of params, or None without it
  rng: jax.Array          # (2,) uint32, the same in all steps: a step draws from fold_in(rng, step)

  @property
  def eval_params(self) -> Any:
    """What is evaluated and exported: the average where there is one."""
    return self.params if self.ema_params is None else self.ema_params


def create_state(config, model, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step, drawn from config.seed."""
  init_key, step_key = jax.random.split(jax.random.PRNGKey(config.seed))
  x = jnp.zeros((1, 64, 64, 3))  # no parameter depends on the size of the pictures
  quality = 1.0 if model.config.num_rates else None
  params = jax.jit(model.init, compiler_options=COMPILE_QUICKLY)(init_key, x, quality)["params"]
  ema_params = jax.tree.map(jnp.copy, params) if config.ema_decay else None
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema_params, step_key)


def draw_qualities(key: jax.Array, batch_size: int, lmbdas: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(quality, lmbda) of this device's samples, both (batch_size,): every sample has a rate of its own.

  Drawn for the global batch, from a key that all devices share, so that they do not depend on how it is split."""
  device, num_devices = jax.lax.axis_index(AXIS), jax.lax.psum(1, AXIS)
  rates = jax.random.randint(key, (num_devices * batch_size,), 0, len(lmbdas))
  rates = jax.lax.dynamic_slice(rates, (device * batch_size,), (batch_size,))
  return rates + 1.0, lmbdas[rates]


def make_train_step(config, model, optimizer: optax.GradientTransformation) -> Callable:
  """train_step(state, x) -> (state, metrics), x (B, H, W, 3) uint8 of one device; runs under the axis "batch".

  The objective is rd_loss + aux_loss, whose gradients touch disjoint parameters. When the loss or a gradient is not
  finite, the parameters, the optimiser and the average stay what they were and metrics["finite"] is 0."""
  schedule = learning_rate_schedule(config)
  variable_rate = model.config.num_rates > 0

  def train_step(state: TrainState, x: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    x = x.astype(jnp.float32) / 255
    rate_key, noise_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    noise_key = jax.random.fold_in(noise_key, jax.lax.axis_index(AXIS))
    if variable_rate:
      quality, lmbda = draw_qualities(rate_key, x.shape[0], jnp.asarray(config.lmbdas, jnp.float32))
    else:
      quality, lmbda = None, config.lmbda

    def objective(params):
      out = model.apply({"params": params}, x, quality=quality, rngs={"noise": noise_key})
      loss, metrics = rd_loss(out, x, lmbda, config.distortion)
      aux_loss = model.apply({"params": params}, method="aux_loss")
      return loss + aux_loss, dict(jax.tree.map(jnp.mean, metrics), aux_loss=aux_loss)

    grads, metrics = jax.grad(objective, has_aux=True)(state.params)
    grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
    main_grads = [g for path, g in jax.tree_util.tree_leaves_with_path(grads) if not is_quantiles(path)]
    metrics["grad_norm"] = optax.global_norm(main_grads)
    metrics["learning_rate"] = schedule(state.step)

    finite = jnp.isfinite(metrics["loss"] + metrics["aux_loss"] + optax.global_norm(grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if state.ema_params is None:
      ema_params = None
    else:  # an average over the steps so far while these are few, as in TensorFlow's ExponentialMovingAverage
      decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
      ema_params = jax.tree.map(lambda ema, p: ema + (1 - decay) * (p - ema), state.ema_params, params)
    new = (params, opt_state, ema_params)
    old = (state.params, state.opt_state, state.ema_params)
    params, opt_state, ema_params = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    metrics["finite"] = finite.astype(jnp.float32)
    return TrainState(state.step + 1, params, opt_state, ema_params, state.rng), metrics

  return train_step


def make_eval_step(config, model) -> Callable:
  """eval_step(params, x, weight, quality, lmbda) -> sums over all devices of weight * metric, and of the weights.

  x (B, H, W, 3) uint8 and weight (B,) of one device (0 for padding); quality is None for a single-rate model. The
  reconstruction is what a file would give: clipped and rounded to 8 bits; rates are those of rounded latents."""
  def eval_step(params, x, weight, quality, lmbda) -> dict[str, jax.Array]:
    x = x.astype(jnp.float32) / 255
    out = model.apply({"params": params}, x, quality=quality)
    out = out._replace(x_hat=jnp.round(jnp.clip(out.x_hat, 0, 1) * 255) / 255)
    _, metrics = rd_loss(out, x, lmbda, config.distortion)
    sums = {name: jnp.sum(weight * value) for name, value in metrics.items()}
    return jax.lax.psum(dict(sums, weight=jnp.sum(weight)), AXIS)

  return eval_step
