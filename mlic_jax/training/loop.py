"""The training program: train_and_evaluate(config, workdir), from photographs to a model directory."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.coding.model_directory import save_model
from mlic_jax.compute import compilation_cache
from mlic_jax.config import CodecConfig
from mlic_jax.data import batches as data
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.training import parallel
from mlic_jax.training.checkpoints import (
  Checkpoints,
  check_config,
  config_to_dict,
  flatten,
  storage_problem,
  write_config,
)
from mlic_jax.training.configuration import check_fields
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.profile import Profile
from mlic_jax.training.run_log import RunLog
from mlic_jax.training.step import create_state, make_eval_step, make_train_step
from mlic_jax.training.transfer import load_teacher, start_from

STEPS_IN_FLIGHT = 3  # how far the host runs ahead of the devices: they stay busy, and a stop waits for little


class NonFiniteLoss(ArithmeticError):
  """The loss or a gradient became infinite or NaN; one line that names the step and the last good checkpoint."""
  status = 1


class SaveError(OSError):
  """The end of a run could not be saved; one line."""
  status = 1


class Interrupted(Exception):
  """SIGTERM or SIGINT came; the state was saved, unless there was a `problem`. `status` is what a shell would say."""

  def __init__(self, signum: int, step: int, problem: str | None = None):
    saved = f"which is not saved: {problem}; the same command continues at an older one" if problem else (
        "the same command continues")
    super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}; {saved}")
    self.signum, self.status = signum, 128 + signum


def train_and_evaluate(config, workdir: str | Path) -> None:
  """Trains the codec of `config` (an ml_collections.ConfigDict; configs/nano.py explains the fields).

  Leaves in `workdir`: config.json, checkpoints/, metrics.csv, eval.csv, tensorboard/, and model/, the parameters of
  the evaluation with the lowest loss. A workdir that holds checkpoints of the same configuration is continued.
  Raises ConfigError and ImageError (both ValueErrors) for a bad configuration or folder, NonFiniteLoss, and
  Interrupted."""
  # Configuration
  model_config = check_fields(config)
  compilation_cache.enable()
  parallel.initialize(config.distributed)
  parallel.check_batch_size("batch_size", config.batch_size, config.accumulate_steps)
  parallel.check_batch_size("eval_batch_size", config.eval_batch_size)
  workdir, main_process = Path(workdir), jax.process_index() == 0

  # Data
  sizes = data.crop_sizes(config.crop_size, config.crop_schedule, side_multiple(model_config))
  sources, held_out = data.split(config.data_dir, config.eval_dir, config.holdout_every, config.tfds_dir)
  photographs = data.Mixture(sources, sizes, int(config.cache_gigabytes * 1e9))
  held_out = data.eval_images(held_out, config.eval_crop_size, config.eval_images)

  # Model, steps
  dtype = jnp.bfloat16 if config.bfloat16_transforms else jnp.float32
  model, optimizer = build(model_config, transform_dtype=dtype, remat=config.remat), make_optimizer(config)
  teacher, teacher_variables = load_teacher(config, model_config)
  rates = list(enumerate(config.lmbdas, start=1)) if model_config.num_rates else [(None, config.lmbda)]
  train_step = parallel.on_all_devices(make_train_step(config, model, optimizer, teacher), donate_state=True)
  eval_step = parallel.on_all_devices(make_eval_step(config, model), in_axes=(0, 0, 0, None, None))

  # State, restored where there is one
  state, best_loss = create_state(config, model, optimizer), None
  workdir.mkdir(parents=True, exist_ok=True)
  checkpoints = Checkpoints(workdir, config.keep_checkpoints)
  if checkpoints.latest_step is not None:
    check_config(config, workdir / "config.json")
    state, best_loss = checkpoints.restore(state)
  elif config.init_from:
    state = start_from(config.init_from, state)
  if main_process:
    write_config(config, workdir / "config.json")
  start = int(state.step)
  num_params = sum(x.size for x in jax.tree.leaves(state.params))
  state, teacher_variables = parallel.replicate((state, teacher_variables))

  batches = data.training_batches(
      photographs, seed=config.seed, batch_size=config.batch_size, sizes=sizes,
      downscale_probability=config.downscale_probability, downscale=config.downscale, flip=config.flip, start=start,
      process_index=jax.process_index(), process_count=jax.process_count(),
      threads=config.data_threads, workers=config.data_workers)

  with RunLog(workdir, start, config.num_steps, quiet=not main_process) as run_log, signals() as received:
    run_log.say(f"{num_params / 1e6:.2f} M parameters, {len(photographs)} photographs, {len(held_out)} held out, "
               f"{jax.device_count()} x {jax.devices()[0].device_kind}; "
               f"{f'continuing at step {start}' if start else 'starting'}, {config.num_steps} steps")
    run_log.hyperparameters(flatten(config_to_dict(config)))
    profile = Profile(config.profile_steps, workdir / "profile")
    pending = []  # metrics of the steps since the last row, still on the devices
    waited, clock = 0.0, time.monotonic()

    for step in range(start + 1, config.num_steps + 1):
      profile.before(step)

      # One step
      before = time.monotonic()
      batch = parallel.shard(next(batches))
      waited += time.monotonic() - before
      state, metrics = train_step(state, batch, teacher_variables)
      pending.append(metrics)
      if step == start + 1:  # compiled by now, which is no part of the speed
        waited, clock = 0.0, time.monotonic()
      if len(pending) >= STEPS_IN_FLIGHT:
        jax.block_until_ready(pending[-STEPS_IN_FLIGHT])
      profile.after(step, metrics)
      run_log.step(step)
      last, stop = step == config.num_steps, bool(received)

      # Figures
      if step % config.log_every == 0 or last:
        row = mean_of(pending, step, checkpoints.latest_step, workdir)
        seconds = time.monotonic() - clock
        row.update(seconds_per_step=seconds / len(pending), data_wait_share=waited / seconds,
                   images_per_second=len(pending) * config.batch_size / seconds)
        run_log.train(row)
        pending, waited, clock = [], 0.0, time.monotonic()

      # Evaluation, and the model when it is the best so far
      evaluate_now = (step % config.eval_every == 0 or last) and not stop
      save_now = step % config.checkpoint_every == 0 or last or stop
      if pending and (evaluate_now or save_now):  # nothing is kept of a state that is not finite
        mean_of(pending, step, checkpoints.latest_step, workdir)
      before = time.monotonic()
      if evaluate_now:
        rows = evaluate(eval_step, state.eval_params, held_out, rates, step, config.eval_batch_size)
        loss = float(np.mean([row["loss"] for row in rows]))
        is_best = bool(best_loss is None or loss < best_loss)
        if is_best:
          problem = main_process and export(config, model_config, workdir / "model", state, step, loss, rows)
          if problem:
            run_log.say(f"the model of step {step} is not exported: {problem}")
          best_loss = best_loss if problem else loss
        run_log.evaluation(step, rows, loss, is_best)
        if config.eval_pictures:
          pictures = held_out[:config.eval_pictures]
          run_log.pictures(step, pictures, reconstruct(model, state.eval_params, pictures, rates))

      # Checkpoint
      if save_now and (problem := checkpoints.save(parallel.unreplicate(state), best_loss)):
        run_log.say(f"no checkpoint by step {step}: {problem}; the next save tries again")
      clock += time.monotonic() - before
      if stop:
        profile.close()
        raise Interrupted(received[0], step, checkpoints.close())

  profile.close()
  if problem := checkpoints.close():
    raise SaveError(f"step {config.num_steps} is not saved: {problem}; the same command continues at an older one")


def mean_of(pending: list[dict], step: int, checkpoint: int | None, workdir: Path) -> dict[str, float]:
  """Means of the metrics of the steps up to `step`; NonFiniteLoss when one of them is not finite."""
  pending = [parallel.unreplicate(metrics) for metrics in pending]
  for i, metrics in enumerate(pending):
    if not metrics["finite"]:
      kept = "no checkpoint was saved yet" if checkpoint is None else (
          f"the last good checkpoint is step {checkpoint} in {workdir / 'checkpoints'}")
      raise NonFiniteLoss(f"loss or gradient not finite at step {step - len(pending) + 1 + i} "
                          f"(loss {metrics['loss']:g}, gradient norm {metrics['grad_norm']:g}); {kept}")
  means = {name: float(np.mean([metrics[name] for metrics in pending])) for name in pending[0] if name != "finite"}
  return dict(means, step=step)


def evaluate(eval_step: Callable, params, images: np.ndarray, rates: list[tuple[int | None, float]], step: int,
             batch_size: int) -> list[dict[str, float]]:
  """Means over `images` (n, crop, crop, 3) uint8, one row for each (quality, lmbda) of `rates`."""
  local_size = batch_size // jax.process_count()
  padding = -len(images) % batch_size
  weight = np.pad(np.ones(len(images), np.float32), (0, padding))
  images = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
  rows = []
  for quality, lmbda in rates:
    sums = []
    for first in range(jax.process_index() * local_size, len(images), batch_size):
      batch = slice(first, first + local_size)
      place = None if quality is None else jnp.float32(quality)
      sums.append(eval_step(params, parallel.shard(images[batch]), parallel.shard(weight[batch]), place,
                            jnp.float32(lmbda)))
    total = jax.tree.map(lambda *x: float(sum(x)), *[parallel.unreplicate(each) for each in sums])
    means = {name: value / total["weight"] for name, value in total.items() if name != "weight"}
    rows.append(dict(step=step, quality=quality, lmbda=float(lmbda), **means))
  return rows


def export(config, model_config: CodecConfig, path: Path, state, step: int, loss: float,
           rows: list[dict[str, float]]) -> str | None:
  """Writes the model directory; returns a line when the disk did not take it, and the old one is still there."""
  recorded = config_to_dict(config)
  for name in ("data_dir", "tfds_dir", "eval_dir", "init_from", "teacher"):  # they mean nothing where the model is used
    del recorded[name]
  training = dict(step=step, eval_loss=loss, eval=rows, config=recorded)
  try:
    save_model(path, model_config, {"params": parallel.unreplicate(state.eval_params)}, training=training)
  except (OSError, ValueError) as error:
    if problem := storage_problem(error):
      return problem
    raise
  return None


def reconstruct(model, params, images: np.ndarray, rates: list[tuple[int | None, float]]) -> dict:
  """Quality -> what it makes of `images` (n, H, W, 3) uint8, in the same form."""
  variables, x = {"params": parallel.unreplicate(params)}, images.astype(np.float32) / 255
  run = jax.jit(lambda variables, x, quality: model.apply(variables, x, quality).x_hat)
  x_hats = {quality: run(variables, x, None if quality is None else jnp.float32(quality)) for quality, _ in rates}
  return {quality: np.round(np.clip(x_hat, 0, 1) * 255).astype(np.uint8) for quality, x_hat in x_hats.items()}


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT in a list instead of dying of them; a second one acts as usual."""
  received: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  usual = {number: signal.getsignal(number) for number in numbers}

  def note(signum, _):
    received.append(signum)
    for number in numbers:
      signal.signal(number, usual[number])

  for number in numbers:
    signal.signal(number, note)
  try:
    yield received
  finally:
    for number in numbers:
      signal.signal(number, usual[number])
