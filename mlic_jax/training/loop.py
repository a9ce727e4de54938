"""The training loop: train_and_evaluate(config, workdir) trains a codec and exports a model directory."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlic_jax.config import CodecConfig
from mlic_jax.data import loader as data
from mlic_jax.data.holdout import HeldOut, held_out_records, names, split
from mlic_jax.folder_lock import FolderLock
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.runtime import compilation_cache
from mlic_jax.runtime.compile_progress import compiling
from mlic_jax.runtime.huge_pages import keep_freed_memory
from mlic_jax.runtime.platforms import check_platforms
from mlic_jax.training import parallel, pmap_programs, preflight
from mlic_jax.training.checkpoints import (
  Checkpoints,
  Evaluated,
  check_config,
  config_to_dict,
  flatten,
  latest_step,
  write_config,
)
from mlic_jax.training.config_schema import FIELDS, check_fields
from mlic_jax.training.metrics_buffer import MetricsBuffer, NonFiniteLoss
from mlic_jax.training.multihost import TIMEOUT_MAX, Processes, connect
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.preemption import Interrupted, Stop, signals
from mlic_jax.training.profile import Profile
from mlic_jax.training.run_log import RunLog
from mlic_jax.training.step import TrainState, create_state, make_train_step
from mlic_jax.training.step_timer import StepTimer
from mlic_jax.training.validation import Validation
from mlic_jax.training.warm_start import load_teacher, start_from

STEPS_IN_FLIGHT = 3  # steps that the host dispatches ahead: enough to keep devices busy, few enough to stop quickly


class SaveError(OSError):
  """The last state of a run could not be saved; the message is one line."""
  status = 1


def train_and_evaluate(config, workdir: str | Path) -> None:
  """Trains the codec of `config`, a ConfigDict, and continues a run of the same config in `workdir`.

  It writes config.json, checkpoints/, metrics.csv, eval.csv, tensorboard/ and model/ to `workdir`; model/ has the
  parameters with the lowest evaluation loss. configs/nano.py explains the fields of a config.

  With several processes, call it in each. All processes raise the same exceptions. If one is lost or ends with an error
  of its own, the others exit with one line and exit status 1.

  ConfigError and ImageError (both ValueErrors) for an invalid config or folder; NonFiniteLoss if training diverges;
  Interrupted after a signal; SaveError if the last state cannot be saved."""
  connect(config.get("distributed", False))
  check_platforms()
  with Processes(_peer_timeout(config)) as processes, contextlib.ExitStack() as stack:
    folder = processes.run_in_all(lambda: preflight.checked_workdir(workdir))
    prepared = processes.run_in_all(lambda: prepare(config, recorded_held_out(folder)))
    lock = processes.run_in_all(
        lambda: stack.enter_context(preflight.workdir_lock(folder)) if processes.index == 0 else None)
    run = processes.exchange("lock", lock and lock.run)[0]
    checkpoints = processes.run_in_all(lambda: stack.enter_context(Checkpoints(folder, config.keep_checkpoints)))
    restored = processes.run_in_all(lambda: restore(config, checkpoints, run, prepared))
    processes.check_same(preflight.record(config, restored.step, len(prepared.images), prepared.held_out))
    if processes.count > 1:
      # The first reduction connects the devices. On CPU the processes have 30 seconds for it, and compiling a step may
      # take some processes minutes longer than others.
      multihost_utils.sync_global_devices("mlic_jax start")
    try:
      train(config, folder, processes, prepared, restored, lock)
    except NonFiniteLoss:  # all processes raise it
      processes.leave()
      raise


class Prepared(NamedTuple):
  """Model and data of a run, which do not depend on the workdir."""
  model_config: CodecConfig
  model: Any               # the module in the precision of training
  images: data.Mixture
  sizes: data.CropSizes
  held_out: np.ndarray     # (n, crop, crop, 3) uint8
  held_out_images: list[HeldOut]
  recorded: Sequence[HeldOut]  # images that earlier starts of the run held out
  teacher: Any
  teacher_variables: Any


def recorded_held_out(workdir: Path) -> list[HeldOut]:
  """Returns the images that the run in `workdir` holds out, [] for a new run."""
  return preflight.read_held_out(workdir) if latest_step(workdir) is not None else []


def prepare(config, recorded: Sequence[HeldOut] = ()) -> Prepared:
  """Checks the config and reads model, images and teacher; `recorded` images stay held out."""
  model_config = check_fields(config)
  compilation_cache.enable()
  parallel.check_batch_size("batch_size", config.batch_size, config.accumulate_steps)
  parallel.check_batch_size("eval_batch_size", config.eval_batch_size)
  sizes = data.crop_sizes(config.crop_size, config.crop_schedule, side_multiple(model_config))
  sources, others = split(config.data_dir, config.eval_dir, config.holdout_every, config.tfds_dir, recorded)
  images = data.Mixture(sources, sizes, int(config.cache_gigabytes * 1e9))
  held_out = data.eval_images(others, config.eval_crop_size, config.eval_images)
  model = build(model_config, **pmap_programs.build_options(config))
  return Prepared(model_config, model, images, sizes, held_out, held_out_records(others), recorded,
                  *load_teacher(config, model_config))


@dataclasses.dataclass
class Start:
  """The state that a run starts from."""
  checkpoints: Checkpoints
  optimizer: Any
  state: TrainState | None
  evaluated: Evaluated
  held_out_changed: bool   # whether evaluated.best_loss belongs to other images than the current held-out ones
  step: int                # state.step, as an int: tracing need not wait until the state is computed

  def take_state(self) -> TrainState:
    """Returns the state and drops the reference to it, which frees memory of the first device after replication."""
    assert self.state is not None  # called once
    state, self.state = self.state, None
    return state


def restore(config, checkpoints: Checkpoints, run: str, prepared: Prepared) -> Start:
  """Returns the newest readable state in the workdir, or a new one; `run` is the ID in the lock of process 0."""
  preflight.check_lock(checkpoints.workdir, run)
  if checkpoints.latest_step is not None:
    check_config(config, checkpoints.workdir / "config.json")
  optimizer = make_optimizer(config, jax.devices()[0].platform)
  state = create_state(config, prepared.model, optimizer, pmap_programs.cache_key(config, prepared.model))
  if checkpoints.latest_step is not None:
    newest = checkpoints.restore(state)
    assert newest is not None  # there is a step
    changed = (newest.evaluated.held_out != preflight.checksum(prepared.held_out) if newest.evaluated.held_out else
               {image.name for image in prepared.recorded} != {image.name for image in prepared.held_out_images})
    return Start(checkpoints, optimizer, newest.state, newest.evaluated, changed, int(newest.state.step))
  if config.init_from:
    state = start_from(config.init_from, state, prepared.model_config)
  return Start(checkpoints, optimizer, state, Evaluated(), False, 0)


def train(config, workdir: Path, processes: Processes, prepared: Prepared, restored: Start, lock: FolderLock) -> None:
  """Runs the training steps, evaluations and saves."""
  checkpoints, first, main_process = restored.checkpoints, restored.step, jax.process_index() == 0
  if main_process:
    checkpoints.prepare_to_save_after(first)
    preflight.remove_partial_files(workdir)
    write_config(config, workdir / "config.json", preflight.environment())
  state, teacher_variables = parallel.replicate((restored.take_state(), prepared.teacher_variables))
  num_params = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(state.params))
  metrics_buffer = MetricsBuffer()
  own_programs = pmap_programs.has_own_programs()
  if own_programs:
    keep_freed_memory()
  train_step = pmap_programs.training(
      make_train_step(config, prepared.model, restored.optimizer, prepared.teacher, jax.devices()[0].platform,
                      own_programs),
      key=pmap_programs.cache_key(config, prepared.model, prepared.teacher), own_programs=own_programs)
  validation = Validation(config, build(prepared.model_config), prepared.held_out, workdir, restored.evaluated)
  reader = contextlib.closing(data.training_batches(
      prepared.images, seed=config.seed, batch_size=config.batch_size, sizes=prepared.sizes,
      downscale_probability=config.downscale_probability, downscale=config.downscale, flip=config.flip, start=first,
      process_index=jax.process_index(), process_count=jax.process_count(),
      threads=config.data_threads, workers=config.data_workers))

  with signals() as received, reader as batches, \
      RunLog(workdir, first, config.num_steps, restored.evaluated.step, quiet=not main_process) as run_log:
    stop, profile = Stop(received, STEPS_IN_FLIGHT), Profile(config.profile_steps, run_log.folder / "profile")
    run_log.say(f"{num_params / 1e6:.2f} M parameters, {len(prepared.images)} images, "
                f"{len(prepared.held_out)} held out, {jax.device_count()} x {jax.devices()[0].device_kind}; "
                f"{f'continuing at step {first}' if first else 'starting'}, {config.num_steps} steps")
    run_log.hyperparameters(flatten(config_to_dict(config)))
    if main_process:
      trained_on = names([part.source for part in prepared.images.parts])
      if warning := preflight.trained_on_held_out(prepared.recorded, trained_on):
        run_log.say(warning)
      preflight.write_held_out(workdir, [*prepared.recorded, *prepared.held_out_images])

    def end(signum: int | None, step: int) -> None:
      """Ends the run: waits for the last save in all processes."""
      profile.close()
      problem = processes.leave(checkpoints.close())[0]
      if signum is not None:
        raise Interrupted(signum, step, problem)
      if problem:
        raise SaveError(f"step {step} is not saved: {problem}; the same command continues at an older step")

    if restored.held_out_changed and restored.evaluated.best_loss is not None:
      signum = validation.evaluate_exported_model(first, run_log, stop)
      if signum is not None:
        return end(signum, first)
    if validation.is_due(first):  # a signal prevented it before
      signum = validation.run(state, first, run_log, stop)
      if signum is not None:
        return end(signum, first)
      checkpoints.note_evaluation(first, validation.evaluated)
    step_settings = (prepared.model_config.to_dict(),
                     [config[each] for each in ("optimizer", "accumulate_steps", "remat")])
    timer, compiled_shape = StepTimer(), None

    for step in range(first + 1, config.num_steps + 1):
      profile.before(step)

      # One step
      with timer.waiting():
        batch = parallel.shard(next(batches))
      if batch.shape == compiled_shape:
        state, metrics, flags = train_step(state, batch, teacher_variables, stop.flags())
        metrics_buffer.add(metrics)
        timer.count()
      else:
        with timer.paused(), compiling("the training step", [step_settings, batch.shape], run_log.say,
                                       "some minutes on a CPU"):
          state, metrics, flags = train_step(state, batch, teacher_variables, stop.flags())
          metrics_buffer.add(metrics)
          metrics_buffer.wait_for_all_but(1)
        compiled_shape = batch.shape
      metrics_buffer.wait_for_all_but(STEPS_IN_FLIGHT)
      profile.after(step, metrics)
      run_log.step(step)
      last = step == config.num_steps
      signum = stop.asked(flags, last)

      # Metrics
      if step % config.log_every == 0 or last:
        row = metrics_buffer.take(step, checkpoints)
        run_log.train(row | timer.take(config.batch_size))

      # Evaluation, checkpoint
      evaluate_now = validation.is_due(step) and signum is None
      save_now = step % config.checkpoint_every == 0 or last or signum is not None
      if len(metrics_buffer) and (evaluate_now or save_now):  # a state that is not finite must not be saved
        metrics_buffer.check(step, checkpoints)
      with timer.paused():
        if evaluate_now:
          signum = validation.run(state, step, run_log, stop)
        if main_process and (save_now or signum is not None):
          lock.check()
          run_log.publish()
          problem = checkpoints.save(parallel.unreplicate(state), validation.evaluated)
          if problem:
            run_log.say(f"no checkpoint at step {step}: {problem}; the next save tries again")
      if signum is not None:
        return end(signum, step)
    return end(None, config.num_steps)


def _peer_timeout(config) -> float:
  """Returns config.peer_timeout, or TIMEOUT_MAX if it is invalid: the processes exchange the error of check_fields."""
  seconds = config.get("peer_timeout")
  return TIMEOUT_MAX if FIELDS["peer_timeout"].check(seconds) else seconds
