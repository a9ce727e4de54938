"""The evaluations of a run on held-out images, and the export of the best model."""

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
from mlic_jax.training.preemption import NOTHING, Stop
from mlic_jax.training.preflight import checksum
from mlic_jax.training.run_log import RunLog
from mlic_jax.training.step import TrainState, make_eval_step

PATH_FIELDS = ("data_dir", "tfds_dir", "eval_dir", "init_from", "teacher")  # mean nothing where a model is used


class Validation:
  """Evaluates on `held_out` (n, crop, crop, 3) uint8, and exports the best model to WORKDIR/model.

  `model` is the codec as it is exported and used, whatever the precision of training. `evaluated` goes into the
  checkpoints."""

  def __init__(self, config, model, held_out: np.ndarray, workdir: Path, evaluated: Evaluated):
    self.config, self.model, self.held_out, self.workdir = config, model, held_out, workdir
    self.evaluated = evaluated
    rates = model.config.num_rates
    self.rates = list(enumerate(config.lmbdas, start=1)) if rates else [(None, config.lmbda)]
    described = pmap_programs.described(config, model)
    self._step = pmap_programs.evaluation(make_eval_step(config, model), described=described)
    self._compiled = False
    self._pictures: dict[int | None, np.ndarray] = {}

  def is_due(self, step: int) -> bool:
    """Whether the run evaluates after `step`, and has not done so yet: an evaluation that a signal prevented is due
    when the run continues."""
    return (step % self.config.eval_every == 0 or step == self.config.num_steps) and 0 < step != self.evaluated.step

  def evaluate_exported_model(self, step: int, run_log: RunLog, stop: Stop) -> int | None:
    """Replaces the best loss by that of the exported model on `held_out`, for held-out images that have changed.

    Losses on other images do not compare: the model of before would stay for ever, or give way to a worse one.
    Returns a signal that came before this was done."""
    loss, found = None, None
    try:
      found = load_model(self.workdir / "model", custom_modules(self.model.config))
    except CheckpointError as error:
      run_log.say(f"the held-out images have changed, and no exported model can be evaluated on them ({error})")
    if found is not None and found.config == self.model.config:
      rows, signum = self._evaluate_and_say(parallel.replicate(found.variables["params"]), step, run_log, stop)
      if signum is not None:
        return signum
      loss = _mean_loss(rows)
      run_log.say(f"the held-out images have changed: on the new ones the loss of the exported model is {loss:.4f}")
    self.evaluated = self.evaluated._replace(best_loss=loss, held_out=checksum(self.held_out))
    return None

  def run(self, state: TrainState, step: int, run_log: RunLog, stop: Stop) -> int | None:
    """Evaluates, and exports the model if it is the best so far. Returns a signal that came before this was done."""
    rows, signum = self._evaluate_and_say(state.eval_params, step, run_log, stop)
    if signum is not None:
      return signum
    loss, best_loss = _mean_loss(rows), self.evaluated.best_loss
    # A loss that is not a number, or was none before, ranks below every other.
    is_best = bool(np.isfinite(loss)) and (best_loss is None or not loss >= best_loss)
    if is_best:
      problem = self.export(state, step, loss, rows)
      if problem:
        run_log.say(f"the model of step {step} is not exported: {problem}")
      best_loss = best_loss if problem else loss
    self.evaluated = Evaluated(best_loss, step, checksum(self.held_out))
    run_log.evaluation(step, rows, loss, is_best)
    if self.config.eval_pictures and not run_log.quiet:
      run_log.pictures(step, *self.pictures())
    return None

  def _evaluate_and_say(self, params, step: int, run_log: RunLog, stop: Stop):
    """Calls `evaluate`, and says the first time that it compiles."""
    with contextlib.nullcontext() if self._compiled else compiling(
        "the evaluation", [self.model.config.to_dict(), self.config.eval_batch_size, self.held_out.shape], run_log.say,
        "up to a minute on a CPU"):
      rows, signum = self.evaluate(params, step, stop)
    self._compiled = True
    return rows, signum

  def evaluate(self, params, step: int, stop: Stop | None = None) -> tuple[list[dict[str, float]], int | None]:
    """Returns (rows, None), with the means over the held-out images for each (quality, lmbda) of `rates`; or ([],
    signal) if `stop` asks for it."""
    batch_size = self.config.eval_batch_size
    local_size = batch_size // jax.process_count()
    padding = -len(self.held_out) % batch_size
    weight = np.pad(np.ones(len(self.held_out), np.float32), (0, padding))
    images = np.pad(self.held_out, ((0, padding), (0, 0), (0, 0), (0, 0)))
    rows, self._pictures = [], {}
    for quality, lmbda in self.rates:
      sums, shown = [], list[np.ndarray]()
      for first in range(jax.process_index() * local_size, len(images), batch_size):
        batch = slice(first, first + local_size)
        place = None if quality is None else jnp.float32(quality)
        of_batch, x_hat = self._step(params, parallel.shard(images[batch]), parallel.shard(weight[batch]), place,
                                     jnp.float32(lmbda), NOTHING if stop is None else stop.flags())
        flags = of_batch.pop("stop")
        sums.append(of_batch)
        if sum(map(len, shown)) < self.config.eval_pictures:
          there = weight[batch] > 0
          shown.append(np.stack([images[batch], parallel.unshard(x_hat)], axis=1)[there])
        if stop is not None and (signum := stop.asked(flags, last=True)) is not None:
          return [], signum
      total = jax.tree.map(lambda *x: float(sum(x)), *[parallel.unreplicate(each) for each in sums])
      means = {name: value / total["weight"] for name, value in total.items() if name != "weight"}
      if shown:
        self._pictures[quality] = np.concatenate(shown)[:self.config.eval_pictures]
      rows.append(dict(step=step, quality=quality, lmbda=float(lmbda), **means))
    return rows, None

  def export(self, state: TrainState, step: int, loss: float, rows: Sequence[dict[str, float]]) -> str | None:
    """The first process writes the model directory; a line when the disk did not take it, and the old one is there."""
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

  def pictures(self) -> tuple[np.ndarray, dict[int | None, np.ndarray]]:
    """The first config.eval_pictures that the last evaluation ran on in this process (n, H, W, 3) uint8; and, for each
    quality, what it made of them, in the same form."""
    originals = next(iter(self._pictures.values()))[:, 0]
    return originals, {quality: both[:, 1] for quality, both in self._pictures.items()}


def _mean_loss(rows: Sequence[dict[str, float]]) -> float:
  return float(np.mean([row["loss"] for row in rows]))
