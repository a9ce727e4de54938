"""The training step and the evaluation step, as pure functions of (state, batch)."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mlic_jax.model import transforms
from mlic_jax.model.initializers import initial_variables
from mlic_jax.model.mlic import for_gradients, side_multiple
from mlic_jax.model.param_shapes import init_without_scan
from mlic_jax.runtime.executable_cache import with_executable_cache
from mlic_jax.runtime.program_chain import own_program
from mlic_jax.training.clipping import norms_array_by_array, norms_in_one_vector, norms_of_sums
from mlic_jax.training.losses import rd_loss
from mlic_jax.training.optimizer import is_frozen, is_quantiles, learning_rate_schedule
from mlic_jax.training.parallel import AXIS, device_index, mean_over_devices, sum_over_devices

OPTIMIZATION_LEVEL = "xla_backend_optimization_level"
COMPILE_QUICKLY = {OPTIMIZATION_LEVEL: 0,    # for programs that run once
                   "xla_llvm_disable_expensive_passes": True}


class TrainState(flax.struct.PyTreeNode):
  """The state that a training step reads and updates."""
  step: jax.Array         # () int32, number of completed steps
  params: Any
  opt_state: optax.OptState
  ema_params: Any         # exponential moving average of params, or None
  rng: jax.Array          # (2,) uint32, the same in all steps: each step uses fold_in(rng, step)

  @property
  def eval_params(self) -> Any:
    """The parameters to evaluate and export: the moving average if there is one."""
    return self.params if self.ema_params is None else self.ema_params


def level_is_chosen() -> bool:
  """Whether JAX or XLA was told how much to optimize."""
  settings: dict[str, Any] = jax.config.values  # JAX has no attribute for this one
  return settings["jax_disable_most_optimizations"] or OPTIMIZATION_LEVEL in os.environ.get("XLA_FLAGS", "")


def create_state(config, model, optimizer: optax.GradientTransformation, key: str | None = None) -> TrainState:
  """Returns the initial state, drawn from config.seed. With a `key` its program is cached on disk."""
  # Level 0 would compile in 1.4 s instead of 2.7 s (nano), but draw the numbers ten times slower.
  options = {} if level_is_chosen() else dict(COMPILE_QUICKLY, **{OPTIMIZATION_LEVEL: 1})
  return with_executable_cache(lambda: _initial_state(config, model, optimizer), f"{__name__}.create_state", key,
                               compiler_options=options)()


def state_shapes(config, model, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the shapes of the initial state."""
  return jax.eval_shape(lambda: _initial_state(config, model, optimizer))


def _initial_state(config, model, optimizer: optax.GradientTransformation) -> TrainState:
  init_key, step_key = jax.random.split(jax.random.PRNGKey(config.seed))
  side = side_multiple(model.config)
  x = jnp.zeros((1, side, side, 3))  # no parameter depends on the image size
  quality = 1.0 if model.config.num_rates else None
  params = initial_variables(lambda key: init_without_scan(model, key, x, quality), init_key)["params"]
  ema_params = params if config.ema_decay else None
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema_params, step_key)


def draw_qualities(key: jax.Array, batch_size: int, lmbdas: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Draws a rate point for each sample of this device; returns (quality, lmbda), both (batch_size,)."""
  rates = _draw_for_device(key, batch_size, lambda key, shape: jax.random.randint(key, shape, 0, len(lmbdas)))
  return rates + 1.0, lmbdas[rates]


def draw_num_received(key: jax.Array, batch_size: int, num_slices: int, probability: float) -> jax.Array:
  """Draws the number of received slices of each sample of this device, (batch_size,).

  With `probability` it is uniform in 0 .. num_slices - 1, and otherwise num_slices."""
  def draw(key, shape):
    which, count = jax.random.split(key)
    partial = jax.random.bernoulli(which, probability, shape)
    return jnp.where(partial, jax.random.randint(count, shape, 0, num_slices), num_slices)
  return _draw_for_device(key, batch_size, draw)


def rate_weights(lmbda: jax.Array, lmbdas: Sequence[float], exponent: float) -> jax.Array:
  """Returns the weights of the losses of samples, (B,): lmbda**-exponent over its mean for all rate points.

  The loss of a codec grows about as the square root of lmbda. Without weights the highest rates dominate the gradient
  of shared parameters."""
  return lmbda**-exponent / jnp.mean(jnp.asarray(lmbdas, jnp.float32)**-exponent)


def _draw_for_device(key: jax.Array, batch_size: int, draw: Callable) -> jax.Array:
  """Returns this device's block of draw(key, (global batch size,)).

  All devices draw for the global batch from the same key, so the numbers do not depend on how the batch is split."""
  device, num_devices = device_index(), jax.lax.psum(1, AXIS)
  return jax.lax.dynamic_slice(draw(key, (num_devices * batch_size,)), (device * batch_size,), (batch_size,))


def make_train_step(config, model, optimizer: optax.GradientTransformation, teacher=None,
                    platform: str | None = None, own_programs: bool = False) -> Callable:
  """Returns train_step(state, x, teacher_variables, stop) -> (state, metrics), which runs under the axis "batch".

  x is (B, H, W, 3) uint8, the batch of one device. The objective is rd_loss with samples weighted by rate_weights, plus
  aux_loss and the loss of a selection map (model/selection_map.py). The gradients of the three touch disjoint
  parameters. If the loss or a gradient is not finite, parameters, optimizer and moving average stay unchanged, and
  metrics["finite"] is 0. Random numbers of a sample depend on its index in the global batch, so the number of devices
  and accumulate_steps change a step only by the order of sums. metrics["stop"] is the mean of the flags `stop` of all
  processes (preemption.py); it is missing without flags.

  Args:
    config: the training config.
    model: the module to train.
    optimizer: the result of make_optimizer.
    teacher: a module with a single rate or the rates of `model`. The target of the distortion moves towards its
      reconstructions by config.distillation_weight. Without a teacher, teacher_variables is None.
    platform: the platform that the step will run on, such as "cpu". None traces the fast variant for each platform.
    own_programs: marks parts of the step as programs of their own, for runtime/program_chain.py on CPU.
  """
  schedule = learning_rate_schedule(config)
  cell = transforms.cell(model.config) if platform == "tpu" else 1
  rates, num_slices, steps = model.config.num_rates, model.config.num_slices, config.accumulate_steps

  def loss_of(params, model, x, sample, noise_key, teacher_variables):
    freeze = lambda path, p: jax.lax.stop_gradient(p) if is_frozen(config, path) else p
    params = jax.tree_util.tree_map_with_path(freeze, params)
    out = model.apply({"params": params}, x, sample["quality"], sample["num_received"], sample["index"][0],
                      rngs={"noise": noise_key})
    target = None
    if teacher is not None:
      teacher_quality = sample["quality"] if teacher.config.num_rates else None
      target = x + config.distillation_weight * (teacher.apply(teacher_variables, x, teacher_quality).x_hat - x)
    loss, metrics = rd_loss(out, x, sample["lmbda"], config.distortion, target, cell)
    if rates and config.rate_weighting:
      loss = jnp.mean(rate_weights(sample["lmbda"], config.lmbdas, config.rate_weighting) * metrics["loss"])
    if out.map_loss is not None:  # has a gradient for the parameters of the map only
      metrics["map_loss"] = out.map_loss
      loss = loss + jnp.mean(out.map_loss)
    aux_loss = model.apply({"params": params}, method="aux_loss")
    slice_bpp = jnp.sum(jnp.mean(out.y_bits, 0), (0, 1)).reshape(num_slices, -1).sum(-1) / (x.shape[1] * x.shape[2])
    metrics = dict(jax.tree.map(jnp.mean, metrics), **{f"bpp_slice_{k}": bpp for k, bpp in enumerate(slice_bpp)})
    return loss + aux_loss, dict(metrics, aux_loss=aux_loss)

  def gradient_of(model, unroll: int) -> Callable:
    """Returns a function for gradient and metrics of a batch: a loop over its parts, `unroll` parts per iteration."""
    def part_gradient(params, x, sample, *others):
      return jax.grad(loss_of, has_aux=True)(params, model, x.astype(jnp.float32) / 255, sample, *others)

    def batch_gradient(params, x, sample, *others):
      if steps == 1:
        return part_gradient(params, x, sample, *others)
      parts = jax.tree.map(lambda each: each.reshape(steps, -1, *each.shape[1:]), (x, sample))
      gradient = lambda part: part_gradient(params, *part, *others)
      body = lambda total, part: (jax.tree.map(lambda a, b: a + b / steps, total, gradient(part)), None)
      zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype),
                           jax.eval_shape(gradient, jax.tree.map(lambda each: each[0], parts)))
      return jax.lax.scan(body, zeros, parts, unroll=unroll)[0]
    return batch_gradient

  # The platform is chosen around the gradient and not inside the scan over slices: tracing the gradient of a choice
  # takes three times as long.
  on_cpu, elsewhere = for_gradients(model, "cpu", own_programs), for_gradients(model, platform)
  if on_cpu is elsewhere and steps == 1:
    gradient = gradient_of(model, 1)
  else:
    gradient = _by_platform(platform, cpu=gradient_of(on_cpu, steps), default=gradient_of(elsewhere, 1))

  def train_step(state: TrainState, x: jax.Array, teacher_variables=None,
                 stop: jax.Array | None = None) -> tuple[TrainState, dict[str, jax.Array]]:
    batch_size = x.shape[0]
    rate_key, noise_key, slices_key = jax.random.split(jax.random.fold_in(state.rng, state.step), 3)
    sample = dict(quality=None, lmbda=jnp.full(batch_size, config.get("lmbda", 0.0)), num_received=None,
                  index=device_index() * batch_size + jnp.arange(batch_size))
    if rates:
      lmbdas = jnp.asarray(config.lmbdas, jnp.float32)
      sample["quality"], sample["lmbda"] = draw_qualities(rate_key, batch_size, lmbdas)
    if config.partial_probability:
      sample["num_received"] = draw_num_received(slices_key, batch_size, num_slices, config.partial_probability)

    grads, metrics = gradient(state.params, x, sample, noise_key, teacher_variables)
    if stop is not None:
      metrics["stop"] = stop
    return (own_program(apply_gradient) if own_programs else apply_gradient)(state, grads, metrics)

  def apply_gradient(state: TrainState, grads: Any, metrics: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
    norms: Callable = functools.partial(norms_array_by_array, platform=platform)
    count: Any = jax.lax.psum(1, AXIS)
    if platform == "gpu":
      metrics, norms = mean_over_devices(metrics), functools.partial(norms_in_one_vector, mean=mean_over_devices)
    elif platform == "tpu" and count > 1:
      metrics, norms = mean_over_devices(metrics), functools.partial(norms_of_sums, sum_over_devices, count)
    else:
      grads, metrics = mean_over_devices((grads, metrics))
    paths_and_grads, treedef = jax.tree_util.tree_flatten_with_path(grads)
    main, aux = ({i: g for i, (path, g) in enumerate(paths_and_grads) if is_quantiles(path) == kind}
                 for kind in (False, True))
    (main, aux), (norm, aux_norm) = norms(main, aux)
    grads = jax.tree.unflatten(treedef, [g for _, g in sorted((main | aux).items())])
    metrics["grad_norm"] = norm
    metrics["learning_rate"] = schedule(state.step)

    @jax.named_scope("optimizer")
    def update(grads, params, opt_state, ema_params):
      updates, opt_state = optimizer.update(grads, opt_state, params, norm=norm)
      params = optax.apply_updates(params, jax.tree.map(lambda update, p: update.reshape(p.shape), updates, params))
      if ema_params is not None:  # a smaller decay in the first steps, as in TensorFlow's ExponentialMovingAverage
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = jax.tree.map(lambda ema, p: ema + (1 - decay) * (p - ema), ema_params, params)
      return params, opt_state, ema_params

    finite = jnp.isfinite(metrics["loss"] + metrics["aux_loss"] + norm + aux_norm)
    # On CPU one conditional for all arrays: for a choice array by array, XLA first copies most of the old arrays.
    whole = lambda grads, *old: jax.lax.cond(finite, update, lambda _, *old: old, grads, *old)
    by_array = lambda grads, *old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), update(grads, *old), old)

    def in_vectors(grads, params, opt_state, ema_params):
      """Updates all arrays as vectors.

      On GPUs cuDNN has another order of axes for convolution kernels. Arrays computed from a kernel inherit this
      order, and XLA copies them into memory of the old order. Vectors have one order only."""
      flat = lambda tree: jax.tree.map(jnp.ravel, tree)
      shaped = lambda tree, like: jax.tree.map(lambda a, b: a.reshape(b.shape), tree, like)
      new_params, opt_state, new_ema = by_array(grads, flat(params), opt_state, flat(ema_params))
      return shaped(new_params, params), opt_state, shaped(new_ema, ema_params)

    on_accelerators = in_vectors if platform == "gpu" else by_array
    update_if_finite = _by_platform(platform, cpu=whole, default=on_accelerators)
    params, opt_state, ema_params = update_if_finite(grads, state.params, state.opt_state, state.ema_params)
    metrics["finite"] = finite.astype(jnp.float32)
    return TrainState(state.step + 1, params, opt_state, ema_params, state.rng), metrics

  return train_step


def _by_platform(platform: str | None, cpu: Callable, default: Callable) -> Callable:
  if platform:
    return cpu if platform == "cpu" else default
  return lambda *arguments: jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


def make_eval_step(config, model, platform: str | None = None) -> Callable:
  """Returns eval_step(params, x, weight, quality, lmbda, stop) -> (sums, reconstructions).

  x (B, H, W, 3) uint8 and weight (B,), 0 for padding, are the batch of one device; quality is None for a single-rate
  model. sums has the sums over all devices of weight * metric and of weight; sums["stop"] has the sums of the flags of
  all processes (preemption.py). The reconstructions (B, H, W, 3) uint8 of this device are clipped and rounded, as in
  decoded files. Rates are those of rounded latents. `platform` is where the step will run, or None for any."""
  model = model.clone(for_tpu=True) if platform == "tpu" else model

  def eval_step(params, x, weight, quality, lmbda, stop) -> tuple[dict[str, jax.Array], jax.Array]:
    x = x.astype(jnp.float32) / 255
    out = model.apply({"params": params}, x, quality=quality)
    levels = jnp.round(jnp.clip(out.x_hat, 0, 1) * 255)
    _, metrics = rd_loss(out._replace(x_hat=levels / 255), x, lmbda, config.distortion)
    sums = {name: jnp.sum(weight * value) for name, value in metrics.items()}
    return sum_over_devices(dict(sums, weight=jnp.sum(weight), stop=stop)), levels.astype(jnp.uint8)

  return eval_step
