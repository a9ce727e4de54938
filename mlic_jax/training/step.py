"""One training step and one evaluation step, as pure functions of (state, batch)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mlic_jax.model import transforms
from mlic_jax.model.initializers import initial_variables
from mlic_jax.model.mlic import side_multiple, unrolled_and_rolled
from mlic_jax.runtime.executable_cache import kept
from mlic_jax.training.clipping import global_norm
from mlic_jax.training.losses import rd_loss
from mlic_jax.training.optimizer import is_frozen, is_quantiles, learning_rate_schedule
from mlic_jax.training.parallel import AXIS, mean_over_devices, sum_over_devices

COMPILE_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # what runs once


class TrainState(flax.struct.PyTreeNode):
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


def create_state(config, model, optimizer: optax.GradientTransformation, described: str | None = None) -> TrainState:
  """The state before the first step, drawn from config.seed. `described` as for programs on disk (kept_programs.py)."""
  # At level 0 it would take 1.4 s to compile and not 2.7 s (nano), and ten times as long to draw the numbers.
  options = dict(COMPILE_QUICKLY, xla_backend_optimization_level=1)
  return kept(lambda: _first_state(config, model, optimizer), f"{__name__}.create_state", described,
              compiler_options=options)()


def state_shapes(config, model, optimizer: optax.GradientTransformation) -> TrainState:
  """The same, as shapes."""
  return jax.eval_shape(lambda: _first_state(config, model, optimizer))


def _first_state(config, model, optimizer: optax.GradientTransformation) -> TrainState:
  init_key, step_key = jax.random.split(jax.random.PRNGKey(config.seed))
  side = side_multiple(model.config)
  x = jnp.zeros((1, side, side, 3))  # no parameter depends on the size of the pictures
  quality = 1.0 if model.config.num_rates else None
  params = initial_variables(lambda key: model.init(key, x, quality), init_key)["params"]
  ema_params = params if config.ema_decay else None
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema_params, step_key)


def draw_qualities(key: jax.Array, batch_size: int, lmbdas: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(quality, lmbda) of this device's samples, both (batch_size,): every sample has a rate of its own."""
  rates = _of_this_device(key, batch_size, lambda key, shape: jax.random.randint(key, shape, 0, len(lmbdas)))
  return rates + 1.0, lmbdas[rates]


def draw_num_arrived(key: jax.Array, batch_size: int, num_slices: int, probability: float) -> jax.Array:
  """How many slices of this device's samples arrive, (batch_size,): with `probability` only 0 .. num_slices - 1."""
  def draw(key, shape):
    which, count = jax.random.split(key)
    partial = jax.random.bernoulli(which, probability, shape)
    return jnp.where(partial, jax.random.randint(count, shape, 0, num_slices), num_slices)
  return _of_this_device(key, batch_size, draw)


def rate_weights(lmbda: jax.Array, lmbdas: Sequence[float], exponent: float) -> jax.Array:
  """What the losses of samples count with these lmbda, (B,): lmbda**-exponent over its mean for all rates.

  The loss of a codec grows about as the square root of lmbda, so the highest rates decide about what all share."""
  return lmbda**-exponent / jnp.mean(jnp.asarray(lmbdas, jnp.float32)**-exponent)


def _of_this_device(key: jax.Array, batch_size: int, draw: Callable) -> jax.Array:
  """The block of this device of draw(key, (global batch size,)).

  Drawn for the global batch, from a key that all devices share, so that it does not depend on how it is split."""
  device, num_devices = jax.lax.axis_index(AXIS), jax.lax.psum(1, AXIS)
  return jax.lax.dynamic_slice(draw(key, (num_devices * batch_size,)), (device * batch_size,), (batch_size,))


def make_train_step(config, model, optimizer: optax.GradientTransformation, teacher=None,
                    platform: str | None = None) -> Callable:
  """train_step(state, x, teacher_variables, stop) -> (state, metrics); it runs under the axis "batch".

  x is (B, H, W, 3) uint8, of one device. The objective is rd_loss, its samples weighted by rate_weights, and aux_loss,
  and the loss of a map of coded elements (model/selection_map.py); their gradients touch disjoint parameters. When the
  loss or a gradient is not finite, the parameters, the optimizer and the average stay what they were and
  metrics["finite"] is 0. A step draws for each sample by its place in the global batch, so that neither the number of
  devices nor accumulate_steps changes what it computes, but for the order of sums.
  metrics["stop"] is the mean of `stop`, the flags of each process, or left out without them (stopping.py).
  `teacher` is a codec without variable rate, or with the rates of `model`, whose reconstructions are mixed into the
  target of the distortion by config.distillation_weight; without one teacher_variables is None.
  `platform` is the one that the step will run on, such as "cpu". None: the one that it is lowered for, and what is
  quick on each is traced."""
  schedule = learning_rate_schedule(config)
  cell = transforms.cell(model.config) if platform == "tpu" else 1
  rates, num_slices, steps = model.config.num_rates, model.config.num_slices, config.accumulate_steps

  def loss_of(params, model, x, sample, noise_key, teacher_variables):
    still = lambda path, p: jax.lax.stop_gradient(p) if is_frozen(config, path) else p
    params = jax.tree_util.tree_map_with_path(still, params)
    out = model.apply({"params": params}, x, sample["quality"], sample["num_arrived"], sample["place"][0],
                      rngs={"noise": noise_key})
    target = None
    if teacher is not None:
      taught = teacher.apply(teacher_variables, x, sample["quality"] if teacher.config.num_rates else None).x_hat
      target = x + config.distillation_weight * (taught - x)
    loss, metrics = rd_loss(out, x, sample["lmbda"], config.distortion, target, cell)
    if rates and config.rate_weighting:
      loss = jnp.mean(rate_weights(sample["lmbda"], config.lmbdas, config.rate_weighting) * metrics["loss"])
    if out.map_loss is not None:  # its gradient is that of the map's own parameters, which nothing else touches
      metrics["map_loss"] = out.map_loss
      loss = loss + jnp.mean(out.map_loss)
    aux_loss = model.apply({"params": params}, method="aux_loss")
    of_slices = jnp.sum(jnp.mean(out.y_bits, 0), (0, 1)).reshape(num_slices, -1).sum(-1) / (x.shape[1] * x.shape[2])
    metrics = dict(jax.tree.map(jnp.mean, metrics), **{f"bpp_slice_{k}": bpp for k, bpp in enumerate(of_slices)})
    return loss + aux_loss, dict(metrics, aux_loss=aux_loss)

  def gradient_of(model, unroll: int) -> Callable:
    """The gradient and the metrics of a batch, which is taken in parts, `unroll` in an iteration of the loop."""
    def of_part(params, x, sample, *others):
      return jax.grad(loss_of, has_aux=True)(params, model, x.astype(jnp.float32) / 255, sample, *others)

    def of_batch(params, x, sample, *others):
      if steps == 1:
        return of_part(params, x, sample, *others)
      parts = jax.tree.map(lambda each: each.reshape(steps, -1, *each.shape[1:]), (x, sample))
      gradient = lambda part: of_part(params, *part, *others)
      body = lambda total, part: (jax.tree.map(lambda a, b: a + b / steps, total, gradient(part)), None)
      zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype),
                           jax.eval_shape(gradient, jax.tree.map(lambda each: each[0], parts)))
      return jax.lax.scan(body, zeros, parts, unroll=unroll)[0]
    return of_batch

  # On CPU a gradient in a rolled loop is slow. The choice is made here, around the gradient, and not in the loop:
  # to trace the gradient of a choice takes three times as long as to trace the gradient.
  at_once, rolled = unrolled_and_rolled(model)
  if at_once is rolled and steps == 1:
    gradient = gradient_of(model, 1)
  else:
    gradient = _by_platform(platform, cpu=gradient_of(at_once, steps), default=gradient_of(rolled, 1))

  def train_step(state: TrainState, x: jax.Array, teacher_variables=None,
                 stop: jax.Array | None = None) -> tuple[TrainState, dict[str, jax.Array]]:
    batch_size = x.shape[0]
    rate_key, noise_key, slices_key = jax.random.split(jax.random.fold_in(state.rng, state.step), 3)
    sample = dict(quality=None, lmbda=jnp.full(batch_size, config.get("lmbda", 0.0)), num_arrived=None,
                  place=jax.lax.axis_index(AXIS) * batch_size + jnp.arange(batch_size))
    if rates:
      lmbdas = jnp.asarray(config.lmbdas, jnp.float32)
      sample["quality"], sample["lmbda"] = draw_qualities(rate_key, batch_size, lmbdas)
    if config.partial_probability:
      sample["num_arrived"] = draw_num_arrived(slices_key, batch_size, num_slices, config.partial_probability)

    grads, metrics = gradient(state.params, x, sample, noise_key, teacher_variables)
    if stop is not None:
      metrics["stop"] = stop
    grads, metrics = mean_over_devices((grads, metrics))
    paths_and_grads = jax.tree_util.tree_leaves_with_path(grads)
    metrics["grad_norm"] = norm = global_norm([g for path, g in paths_and_grads if not is_quantiles(path)])
    aux_norm = global_norm([g for path, g in paths_and_grads if is_quantiles(path)])
    metrics["learning_rate"] = schedule(state.step)

    @jax.named_scope("optimizer")
    def take(grads, params, opt_state, ema_params):
      updates, opt_state = optimizer.update(grads, opt_state, params, norm=norm)
      params = optax.apply_updates(params, updates)
      if ema_params is not None:  # over the steps so far while these are few, as TensorFlow's ExponentialMovingAverage
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = jax.tree.map(lambda ema, p: ema + (1 - decay) * (p - ema), ema_params, params)
      return params, opt_state, ema_params

    finite = jnp.isfinite(metrics["loss"] + metrics["aux_loss"] + norm + aux_norm)
    # As a whole, or array by array: for that, XLA for CPUs copies most of the old ones first.
    whole = lambda grads, *old: jax.lax.cond(finite, take, lambda _, *old: old, grads, *old)
    by_array = lambda grads, *old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), take(grads, *old), old)
    take_if_finite = _by_platform(platform, cpu=whole, default=by_array)
    params, opt_state, ema_params = take_if_finite(grads, state.params, state.opt_state, state.ema_params)
    metrics["finite"] = finite.astype(jnp.float32)
    return TrainState(state.step + 1, params, opt_state, ema_params, state.rng), metrics

  return train_step


def _by_platform(platform: str | None, cpu: Callable, default: Callable) -> Callable:
  if platform:
    return cpu if platform == "cpu" else default
  return lambda *arguments: jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


def make_eval_step(config, model) -> Callable:
  """eval_step(params, x, weight, quality, lmbda, stop) -> (sums over all devices of weight * metric, and of the
  weights; the reconstructions of this one).

  x (B, H, W, 3) uint8 and weight (B,) of one device (0 for padding); quality is None for a single-rate model. The
  reconstruction is what a file would give: clipped and rounded to 8 bits; rates are those of rounded latents.
  sums["stop"] are the sums of the flags of each process (stopping.py)."""
  def eval_step(params, x, weight, quality, lmbda, stop) -> tuple[dict[str, jax.Array], jax.Array]:
    x = x.astype(jnp.float32) / 255
    out = model.apply({"params": params}, x, quality=quality)
    levels = jnp.round(jnp.clip(out.x_hat, 0, 1) * 255)
    _, metrics = rd_loss(out._replace(x_hat=levels / 255), x, lmbda, config.distortion)
    sums = {name: jnp.sum(weight * value) for name, value in metrics.items()}
    return sum_over_devices(dict(sums, weight=jnp.sum(weight), stop=stop)), levels.astype(jnp.uint8)

  return eval_step
