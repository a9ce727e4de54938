"""Evaluations of a run on held-out images, and the export of the best model."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.coding.checkpoint_io import CheckpointError, load_model, save_model
from mlic_jax.model.registry import custom_modules
from mlic_jax.runtime.compile_progress import compiling
from mlic_jax.training import parallel, pmap_programs
from mlic_jax.training.checkpoints import Evaluated, config_to_dict, storage_problem
from mlic_jax.training.preemption import NO_SIGNALS, Stop
from mlic_jax.training.preflight import checksum
from mlic_jax.training.run_log import RunLog
from mlic_jax.training.step import TrainState, make_eval_step

PATH_FIELDS = ("data_dir", "tfds_dir", "eval_dir", "init_from", "teacher")  # paths are not exported with a model


class Validation:
  """Evaluates on `held_out` (n, crop, crop, 3) uint8, and exports the best model to WORKDIR/model.

  `model` is the module in the precision of exported models, whatever the precision of training. The attribute
  `evaluated` is saved in checkpoints."""

  def __init__(self, config, model, held_out: np.ndarray, workdir: Path, evaluated: Evaluated):
    self.config, self.model, self.held_out, self.workdir = config, model, held_out, workdir
    self.evaluated = evaluated
    rates = model.config.num_rates
    self.rates = list(enumerate(config.lmbdas, start=1)) if rates else [(None, config.lmbda)]
    step = make_eval_step(config, model, jax.devices()[0].platform)
    self._step = pmap_programs.evaluation(step, key=pmap_programs.evaluation_key(config, model))
    self._compiled = False
    self._images: dict[int | None, np.ndarray] = {}  # by quality: (n, 2, H, W, 3), originals and reconstructions

  def is_due(self, step: int) -> bool:
    """Whether the run has to evaluate after `step` and has not done so yet.

    An evaluation that a signal prevented is due when the run continues."""
    return (step % self.config.eval_every == 0 or step == self.config.num_steps) and 0 < step != self.evaluated.step

  def evaluate_exported_model(self, step: int, run_log: RunLog, stop: Stop) -> int | None:
    """Recomputes the best loss, that of the exported model, after the held-out images have changed.

    Losses on different images are not comparable: an exported model could stay forever, or be replaced by a worse one.
    Returns a signal that interrupted the evaluation, or None."""
    loss, found = None, None
    try:
      found = load_model(self.workdir / "model", custom_modules(self.model.config))
    except CheckpointError as error:
      run_log.say(f"the held-out images have changed, but there is no exported model to evaluate on them ({error})")
    if found is not None and found.config == self.model.config:
      rows, signum = self._evaluate(parallel.replicate(found.variables["params"]), step, run_log, stop)
      if signum is not None:
        return signum
      loss = _mean_loss(rows)
      run_log.say(f"the held-out images have changed; the loss of the exported model on the new ones is {loss:.4f}")
    self.evaluated = self.evaluated._replace(best_loss=loss, held_out=checksum(self.held_out))
    return None

  def run(self, state: TrainState, step: int, run_log: RunLog, stop: Stop) -> int | None:
    """Evaluates, and exports the model if it is the best so far. Returns a signal that interrupted this, or None."""
    rows, signum = self._evaluate(state.eval_params, step, run_log, stop)
    if signum is not None:
      return signum
    loss, best_loss = _mean_loss(rows), self.evaluated.best_loss
    # A NaN ranks below every other loss, as a new loss and as the best one so far.
    is_best = bool(np.isfinite(loss)) and (best_loss is None or not loss >= best_loss)
    if is_best:
      problem = self.export(state, step, loss, rows)
      if problem:
        run_log.say(f"the model of step {step} is not exported: {problem}")
      best_loss = best_loss if problem else loss
    self.evaluated = Evaluated(best_loss, step, checksum(self.held_out))
    run_log.evaluation(step, rows, loss, is_best)
    if self.config.eval_pictures and not run_log.quiet:
      run_log.images(step, *self.images())
    return None

  def _evaluate(self, params, step: int, run_log: RunLog, stop: Stop):
    """Calls `evaluate`, and logs the compilation in the first call."""
    with contextlib.nullcontext() if self._compiled else compiling(
        "the evaluation", [self.model.config.to_dict(), self.config.eval_batch_size, self.held_out.shape], run_log.say,
        "up to a minute on a CPU"):
      rows, signum = self.evaluate(params, step, stop)
    self._compiled = True
    return rows, signum

  def evaluate(self, params, step: int, stop: Stop | None = None) -> tuple[list[dict[str, float]], int | None]:
    """Returns (rows, None), one row of means over the held-out images for each (quality, lmbda) of `rates`.

    Returns ([], signal) if `stop` reports a signal."""
    batch_size = self.config.eval_batch_size
    local_size = batch_size // jax.process_count()
    padding = -len(self.held_out) % batch_size
    weight = np.pad(np.ones(len(self.held_out), np.float32), (0, padding))
    images = np.pad(self.held_out, ((0, padding), (0, 0), (0, 0), (0, 0)))
    rows, self._images = [], {}
    for quality, lmbda in self.rates:
      sums, pairs = [], list[np.ndarray]()
      for first in range(jax.process_index() * local_size, len(images), batch_size):
        batch = slice(first, first + local_size)
        quality_array = None if quality is None else jnp.float32(quality)
        batch_sums, x_hat = self._step(params, parallel.shard(images[batch]), parallel.shard(weight[batch]),
                                       quality_array, jnp.float32(lmbda),
                                       NO_SIGNALS if stop is None else stop.flags())
        flags = batch_sums.pop("stop")
        sums.append(batch_sums)
        if sum(map(len, pairs)) < self.config.eval_pictures:
          is_image = weight[batch] > 0
          pairs.append(np.stack([images[batch], parallel.unshard(x_hat)], axis=1)[is_image])
        if stop is not None and (signum := stop.asked(flags, last=True)) is not None:
          return [], signum
      total = jax.tree.map(lambda *x: float(sum(x)), *[parallel.unreplicate(each) for each in sums])
      means = {name: value / total["weight"] for name, value in total.items() if name != "weight"}
      if pairs:
        self._images[quality] = np.concatenate(pairs)[:self.config.eval_pictures]
      rows.append(dict(step=step, quality=quality, lmbda=float(lmbda), **means))
    return rows, None

  def export(self, state: TrainState, step: int, loss: float, rows: Sequence[dict[str, float]]) -> str | None:
    """Writes the model directory in process 0. Returns one line if the disk fails; the old model then remains."""
    if jax.process_index():
      return None
    recorded = {name: value for name, value in config_to_dict(self.config).items() if name not in PATH_FIELDS}
    training = dict(step=step, eval_loss=loss, eval=list(rows), config=recorded)
    try:
      params = parallel.unreplicate(state.eval_params)
      save_model(self.workdir / "model", self.model.config, {"params": params}, training=training)
    except Exception as error:
      if problem := storage_problem(error):
        return problem
      raise
    return None

  def images(self) -> tuple[np.ndarray, dict[int | None, np.ndarray]]:
    """Returns the first config.eval_pictures images of the last evaluation in this process, and their reconstructions.

    The originals are (n, H, W, 3) uint8, and so are the reconstructions at each quality."""
    originals = next(iter(self._images.values()))[:, 0]
    return originals, {quality: pairs[:, 1] for quality, pairs in self._images.items()}


def _mean_loss(rows: Sequence[dict[str, float]]) -> float:
  return float(np.mean([row["loss"] for row in rows]))
